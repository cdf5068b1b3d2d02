"""Majority votes, and the probe that switches them off."""

import json

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.phi.columns.votes import VotesColumn, extract, majority, probe_accuracy
from tests.rlhf.phi.columns.rows import completions, write_rows


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        ("12 apples, so 1,200.50 in all.", "number", "1.2005E+3"),
        ("It is 7.", "number", "7"),
        ("It is 7.0", "number", "7"),
        ("-0", "number", "0"),
        ("none", "number", None),
        (r"so \boxed{\frac{1}{2}} and \boxed{ 42 }.", "boxed", "42"),
        (r"\boxed{\frac{1}{2}}", "boxed", r"\frac{1}{2}"),
        (r"\boxed{1", "boxed", None),
        ("Answer: Paris \nAnswer:  London.", r"Answer:\s*(.+)", "london"),
        ("no answer", r"Answer: (.+)", None),
        ("9" * 60, "number", None),
    ],
)
def test_answers_are_found_and_spelt_alike(text, rule, answer):
    got = extract(text, rule)
    if text == "9" * 60:  # longer than decimal arithmetic keeps: still one answer
        assert got is not None and got == extract(text + ".0", rule)
    elif answer is None or not answer[0].isdigit():
        assert got == answer
    else:
        assert float(got) == float(answer) and extract(f"{float(answer)}", "number") == got


def test_majority_needs_one_winner():
    assert majority(["a", "b", "a", None]) == ("a", 2 / 3)
    assert majority(["a", "b"]) == (None, 0.0) and majority([None]) == (None, 0.0)


def probe(path, right, wrong):
    rows = [
        {"prompt": f"{n}", "completions": ["7", "so 7", "8"], "answer": 7 if n < right else 8}
        for n in range(right + wrong)
    ]
    return str(write_rows(path / "probe.jsonl", rows))


def votes(folder, right=3, wrong=1):
    return VotesColumn("vote", "number", probe(folder, right, wrong), 0.5)


def test_the_reward_is_agreement_with_the_majority_of_the_prompt(tmp_path):
    prefs = completions(
        tmp_path,
        {
            "A": ["it is 4", "so 4.0", "maybe 5", "I do not know"],
            "B": ["1", "2"],
            "C": ["3", "3", "9", "9 or so: 9"],  # a text that stands there twice votes once: 3 once, 9 twice
        },
    )
    measured = votes(tmp_path).measure(prefs, fitting=True)
    np.testing.assert_array_equal(measured.values[:, 0], [1, 1, 0, 0, np.nan, np.nan, 0, 0, 1, 1])
    assert measured.off is None and measured.report["probe_accuracy"] == 0.75
    assert measured.report["answered"] == 0.9


@pytest.mark.parametrize(("right", "off"), [(4, True), (5, False)])
def test_below_half_the_majorities_right_it_is_off(tmp_path, right, off):
    prefs = completions(tmp_path, {"A": ["4", "5", "4 again"]})
    measured = votes(tmp_path, right, 10 - right).measure(prefs, fitting=True)
    assert (measured.off is not None) == off
    if off:
        assert "right on 40% of 10 probe prompts, below min_accuracy 50%" in measured.off
    assert votes(tmp_path, right, 10 - right).measure(prefs, fitting=False).off is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "completions": "7", "answer": 7}, "row 1: completions must be a list"),
        ({"prompt": "x", "completions": [7], "answer": 7}, "row 1: completions must be a list"),
        ({"prompt": "x", "completions": ["7"]}, "row 1: answer None"),
        ([1], "row 1: completions must be a list"),
    ],
)
def test_a_bad_probe_row_is_named(tmp_path, row, message):
    path = tmp_path / "probe.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        probe_accuracy(str(path), "number")


def test_an_empty_or_missing_probe_is_refused(tmp_path):
    (tmp_path / "probe.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no probe rows"):
        probe_accuracy(str(tmp_path / "probe.jsonl"), "number")
    with pytest.raises(UserError, match="no such file"):
        probe_accuracy(str(tmp_path / "none.jsonl"), "number")
