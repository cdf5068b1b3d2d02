"""Columns together: what becomes of off columns, gates, missing values, and columns that have changed."""

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.phi import encoder
from rlhf.phi.columns import table
from rlhf.phi.columns.config import ColumnConfig, plain
from tests.rlhf.phi.columns.rows import completions, write_rows

CODE = '''"""Rewards."""


def tenths(completions, **columns):
    return [0.7, -1.9, 0.1, 2.5][: len(completions)]


def sometimes(completions, **columns):
    return [4.0, None, 1.0, None][: len(completions)]


def polite(completions, **columns):
    return [float("please" in text) for text in completions]


def never(completions, **columns):
    return [None for _ in completions]
'''
TEXTS = {"P": ["a please 1", "b 1", "c please 2"], "Q": ["d 3"]}


@pytest.fixture
def code(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return str(tmp_path / "mine.py")


def function(code, name, **more):
    return ColumnConfig(name=name, kind="function", function=f"{code}:{name}", **more)


def votes(tmp_path, answer):
    rows = [{"prompt": "x", "completions": ["1", "1", "2"], "answer": answer}]
    path = write_rows(tmp_path / f"probe{answer}.jsonl", rows)
    return ColumnConfig(name="vote", kind="votes", probe=str(path))


def test_the_embedding_is_the_raw_rewards_and_can_be_made_again(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    configs = (function(code, "tenths"), function(code, "sometimes"))
    values, settings = encoder.prepare(prefs, "columns", None, -1, "mean", configs)
    assert values.tolist() == [
        [0.7, 4.0],
        [-1.9, 2.5],
        [0.1, 1.0],
        [2.5, 2.5],
    ]  # the mean where it says nothing
    assert table.column_names(settings) == ("tenths", "sometimes") == tuple(settings["names"])
    np.testing.assert_array_equal(encoder.embed_items(prefs, settings), values)
    again = table.evaluate(completions(tmp_path, {"P": ["a", "b"]}), settings)
    assert again.values.tolist() == [[0.7, 4.0], [-1.9, 2.5]]  # the mean of the fit, not of these two
    np.testing.assert_array_equal(again.raw, [[0.7, 4.0], [-1.9, np.nan]])


def test_a_column_that_is_off_is_not_part_of_the_embedding_and_the_report_says_why(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    values, settings = table.prepare(prefs, (votes(tmp_path, 2), function(code, "tenths")))
    assert values.shape == (4, 1) and table.column_names(settings) == ("tenths",)
    summary = table.summary(settings)
    assert list(summary["used"]) == ["tenths"]
    assert "right on 0% of 1 probe prompts, below min_accuracy 50%" in summary["off"]["vote"]
    values, settings = table.prepare(prefs, (votes(tmp_path, 1), function(code, "tenths")))
    assert values.shape == (4, 2) and table.summary(settings)["off"] == {}
    assert settings["columns"][0]["report"]["probe_accuracy"] == 1.0


def test_nothing_left_is_an_error_that_says_why(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    with pytest.raises(UserError, match="no column is left .*vote: majority answers are right on 0%"):
        table.prepare(prefs, (votes(tmp_path, 2),))
    with pytest.raises(UserError, match=r"no column is left .*\(gates only\)"):
        table.prepare(prefs, (function(code, "polite", gate=0.5),))
    with pytest.raises(UserError, match="'never': says nothing about any completion"):
        table.prepare(prefs, (function(code, "never"),))


def test_a_gate_accepts_and_is_no_reward(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    configs = (
        function(code, "polite", gate=0.5),
        function(code, "tenths"),
        function(code, "sometimes", gate=4.0),
    )
    values, settings = table.prepare(prefs, configs)
    assert values.shape == (4, 1)
    found = table.evaluate(prefs, settings)
    assert found.names == ("tenths",)
    assert found.gates["polite"].tolist() == [True, False, True, False]
    assert found.gates["sometimes"].tolist() == [True, False, False, False]  # at the threshold; unknown: no


def test_a_changed_function_is_refused_before_it_runs(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    _, settings = table.prepare(prefs, (function(code, "tenths"),))
    (tmp_path / "mine.py").write_text(CODE.replace("0.7", "0.8") + "raise SystemExit\n")
    with pytest.raises(
        UserError, match="'tenths': .*mine.py:tenths is not what the rewards were fitted with"
    ):
        table.evaluate(prefs, settings)


def test_the_fingerprint_follows_names_and_sources(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    prints = [
        table.prepare(prefs, configs)[1]["fingerprint"]
        for configs in (
            (function(code, "tenths"),),
            (function(code, "polite"),),
            (ColumnConfig(name="other", kind="function", function=f"{code}:tenths"),),
            (function(code, "polite"), function(code, "tenths")),
        )
    ]
    assert len(set(prints)) == 4


def test_the_statistics_of_reference_samples_are_within_prompts(tmp_path, code):
    prefs = completions(tmp_path, TEXTS)
    _, settings = table.prepare(prefs, (function(code, "tenths"),))
    samples = completions(tmp_path, {"X": ["a", "b"], "Y": ["c", "d"]})  # 0.7, −1.9 and 0.1, 2.5
    reference = table.standardise_on(settings, samples)["reference"]
    assert reference["mean"] == pytest.approx([(0.7 - 1.9 + 0.1 + 2.5) / 4])
    assert reference["sd"] == pytest.approx([np.sqrt((2 * 1.3**2 + 2 * 1.2**2) / 4)])
    with pytest.raises(UserError, match="'tenths': the same for all completions of every prompt"):
        table.standardise_on(settings, completions(tmp_path, {"X": ["a"], "Y": ["b"]}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "function"}, "function is required"),
        ({"kind": "judge", "model": "m"}, "address is required"),
        ({"kind": "votes"}, "probe is required"),
        ({"kind": "classifier", "model": "m", "answer": "boxed"}, "answer is for kind votes, not classifier"),
        (
            {"kind": "function", "function": "a:b", "model": "m"},
            "model is for kind classifier, judge, reference",
        ),
        ({"kind": "votes", "probe": "p", "answer": "(a)(b)"}, "has 2 groups"),
        ({"kind": "votes", "probe": "p", "answer": "(a"}, "is no regular expression"),
    ],
)
def test_keys_belong_to_kinds(settings, message):
    with pytest.raises(ValueError, match=message):
        ColumnConfig(name="x", **settings)


def test_stored_settings_hold_the_keys_of_the_kind_alone():
    own = plain(ColumnConfig(name="x", kind="classifier", model="m"))
    assert own == {"name": "x", "kind": "classifier", "gate": None, "model": "m"}
