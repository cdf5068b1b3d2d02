"""Descriptions against hand counts; the leak alarm on planted faults, and its silence on real and simulated
taste.
"""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from rewards.data import leak
from rewards.data.check import describe, leak_check
from rewards.data.leak import wilson_interval
from rewards.data.read import read_preferences


def test_numbers_of_a_set_small_enough_to_count(row, write):
    # Items R(ed) and B(lue); ann is asked R/B three times (R, R, B), bob once (R), cy once (B), dee ties.
    red, blue = {"chosen": "R", "rejected": "B"}, {"chosen": "B", "rejected": "R"}
    rows = [
        row(**red, user_id="ann", timestamp=1, shown_first="chosen"),
        row(**red, user_id="ann", timestamp=2, shown_first="rejected"),
        row(**blue, user_id="ann", timestamp=3, shown_first="chosen"),
        row(**red, user_id="bob", timestamp=1, shown_first="chosen"),
        row(**blue, user_id="cy", timestamp=1),
        row(**red, user_id="dee", timestamp=1, outcome=0.5, shown_first="chosen"),
        row(**blue, user_id="cy", timestamp=1),  # a copy
        row(user_id="bob", timestamp=2, chosen="G", rejected="B"),
    ]
    found = describe(read_preferences(write(rows)))
    assert (found["users"], found["items"], found["prompts"], found["comparisons"]) == (4, 3, 1, 8)
    assert found["comparisons_per_user"] == {"min": 1, "q25": 1.75, "median": 2, "q75": 2.25, "max": 3}
    assert found["ties"] == {"count": 1, "share": 1 / 8}
    assert found["items_on_both_sides"] == pytest.approx(2 / 3)
    assert found["shown_first"]["rows"] == 4
    assert found["shown_first"]["chosen_share"] == 3 / 4
    # First answers: ann R, bob R, cy B; of three couples one agrees.
    assert found["agreement"] == {"rate": 1 / 3, "item_pairs": 1, "people_pairs": 3}
    assert found["retest"] == {
        "cases": 1,
        "inconsistent": 1,
        "consistency": 0.0,
    }  # the copy of cy's row is no retest
    assert found["duplicates"] == 1
    json.dumps(found, allow_nan=False)


def test_notes_speak_up(row, write):
    alone = describe(read_preferences(write([row(outcome=0.5)])))
    assert any("one person only" in note for note in alone["notes"])
    assert any("every comparison is a tie" in note for note in alone["notes"])
    ordered = [row(user_id=f"u{n}", shown_first=n > 0) for n in range(40)]
    assert any("order effect" in note for note in describe(read_preferences(write(ordered)))["notes"])


@pytest.mark.parametrize(("successes", "total"), [(0, 5), (3, 7), (40, 41), (500, 1000)])
def test_wilson_interval_agrees_with_scipy(successes, total):
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    np.testing.assert_allclose(
        wilson_interval(successes, total), expected, atol=1e-4
    )  # z = 1.96 against 1.95996…


WORDS = "river stone quiet lamp garden seven clouds window paper light under glass early north".split()


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    chosen_words = [rng.choice(WORDS, rng.integers(4, 14)) for _ in range(count)]
    return [f"{' '.join(words).capitalize()} {n}." for n, words in enumerate(chosen_words)]


def pairs(row, seed=0, count=300, rejected=lambda text: text, chosen=lambda text: text):
    """Noise choices between random sentences under many prompts, rendered by the two functions."""
    rng = np.random.default_rng(seed)
    pool = texts(60, seed)
    rows = []
    for n in range(count):
        a, b = rng.choice(60, 2, replace=False)
        rows.append(
            row(prompt=f"q{n % 30}", chosen=chosen(pool[a]), rejected=rejected(pool[b]), user_id=f"u{n % 9}")
        )
    return rows


def some(change, every=10):
    """Apply `change` to about one text in `every`, chosen by its content."""
    return lambda text: change(text) if sum(map(ord, text)) % every == 0 else text


FAULTS = {
    "Python or JSON list syntax": lambda text: repr([text]),
    "special tokens": lambda text: text + "<|im_end|>",
    "role label": lambda text: "Assistant: " + text,
    "wrong encoding": lambda text: text.replace(" ", " â€™", 1),
    "HTML entities": lambda text: text + " &amp; so on.",
    "Python or JSON dictionary syntax": lambda text: json.dumps({"content": text}),
    "bytes or array syntax": lambda text: repr(text.encode()),
    "escape sequences written out": lambda text: text + "\\n",
    "whitespace at the end": lambda text: text + "\n",
    "whitespace at the start": lambda text: " " + text,
    "no punctuation at the end": lambda text: text[:-1],
    "small letters only": str.lower,
    "wrapped in quotation marks": lambda text: f'"{text}"',
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_planted_fault_is_named_with_its_side(fault, side, row, write):
    found = leak_check(read_preferences(write(pairs(row, **{side: FAULTS[fault]}))), seed=0)
    assert found["alarm"]
    assert found["accuracy"] > 0.97
    (one,) = [one for one in found["suspicious"] if one["feature"] == fault]
    assert (one["side"], one["one_sided"]) == (side, 1.0)
    assert fault in found["message"] and "\n" not in one["explanation"]


@pytest.mark.parametrize("fault", ["Python or JSON list syntax", "special tokens"])
def test_a_fault_in_a_tenth_of_one_side_is_found_though_accuracy_stays_low(fault, row, write):
    rows = pairs(row, count=900, rejected=some(FAULTS[fault]))
    found = leak_check(read_preferences(write(rows)), seed=0)
    assert found["accuracy"] < 0.7
    assert fault in [one["feature"] for one in found["suspicious"]]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_form_on_both_sides_is_no_fault(fault, row, write):
    everywhere = pairs(row, rejected=FAULTS[fault], chosen=FAULTS[fault])
    sometimes = pairs(row, rejected=some(FAULTS[fault], 3), chosen=some(FAULTS[fault], 3))
    for rows in (everywhere, sometimes):
        assert not leak_check(read_preferences(write(rows)), seed=0)["alarm"]


def test_a_plain_taste_is_reported_but_is_no_alarm(row, write):
    """Everybody always likes the longer text: accuracy near 1, and nothing wrong with the rendering."""
    rows = pairs(row)
    for one in rows:
        one["rejected"], one["chosen"] = sorted((one["rejected"], one["chosen"]), key=len)
    found = leak_check(
        read_preferences(write([one for one in rows if one["chosen"] != one["rejected"]])), seed=0
    )
    assert found["accuracy"] > 0.9
    assert not found["alarm"]
    assert found["strongest"][0]["weight"] > 0


def test_one_odd_text_that_always_loses_is_no_rendering_fault(row, write):
    rows = pairs(row) + [
        row(prompt="q0", chosen=text, rejected="['odd']", user_id="z") for text in texts(60, 3)
    ]
    assert not leak_check(read_preferences(write(rows)), seed=0)["alarm"]


def test_noise_gives_an_interval_around_one_half_and_the_seed_fixes_the_result(row, write):
    prefs = read_preferences(write(pairs(row, count=600)))
    found = leak_check(prefs, seed=3)
    assert found["interval"][0] < 0.53 and found["interval"][1] > 0.47
    assert found["grouped_by"] == "prompt" and found["num_groups"] == 30
    assert leak_check(prefs, seed=3) == found
    json.dumps(found, allow_nan=False)


def test_prompts_are_kept_in_one_fold(row, write):
    """Every prompt has its own pair of texts, repeated: memorising pairs must not count as predicting."""
    pool, rng = texts(30), np.random.default_rng(1)
    rows = [
        row(prompt=f"q{n}", chosen=pool[2 * n], rejected=pool[2 * n + 1])
        for n in range(15)
        for _ in range(20)
    ]
    rng.shuffle(rows)
    assert leak_check(read_preferences(write(rows)), seed=0)["accuracy"] < 0.7


def test_too_little_to_check_is_said(row, write):
    assert (
        "every comparison is a tie"
        in leak_check(read_preferences(write([row(outcome=0.5)])), seed=0)["message"]
    )
    bare = row(prompt=..., chosen=..., rejected=..., chosen_features=[1.0], rejected_features=[2.0])
    assert "only features" in leak_check(read_preferences(write([bare])), seed=0)["message"]
    few = leak_check(read_preferences(write([row()])), seed=0)
    assert few["accuracy"] is None and "too few groups" in few["message"]


def test_texts_of_one_form_give_a_coin(row, write):
    """Nothing about the surface varies, so there is nothing to fit."""
    rows = [row(prompt=f"q{n}", chosen=f"a{n % 7}", rejected=f"b{n % 7}") for n in range(20)]
    found = leak_check(read_preferences(write(rows)), seed=0)
    assert (found["accuracy"], found["interval"], found["alarm"]) == (0.5, [0.5, 0.5], False)


def test_which_way_a_pair_is_turned_does_not_matter():
    """Rows that all happen to be turned alike are no reason to fail: turned otherwise they say the same."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(9, 2)) + 1.0
    sign = np.array([1.0, -1, 1, 1, -1, 1, -1, -1, 1])
    expected = leak._fit(inputs * sign[:, None], sign).coef_
    for side in (1.0, -1.0):
        np.testing.assert_allclose(leak._fit(side * inputs, np.full(9, side)).coef_, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["electricity_pairs.jsonl.gz", "train_pairs.jsonl.gz"])
def test_real_taste_is_silent_and_a_leaked_copy_is_not(name, reference, tmp_path, write):
    prefs = read_preferences(str(reference(name)))
    found = leak_check(prefs, seed=0)
    assert not found["alarm"]
    assert 0.5 < found["accuracy"] < 0.75
    described = describe(prefs)
    if name.startswith("electricity"):
        # Figures published with the reference data.
        assert (described["retest"]["cases"], described["retest"]["inconsistent"]) == (1039, 114)
        assert described["items"] == 35
    else:
        assert described["shown_first"]["chosen_share"] == pytest.approx(0.503, abs=5e-4)
    leaked = [
        {
            "prompt": prefs.prompts[0],
            "chosen": prefs.item_text[prefs.chosen[n]],
            "rejected": repr([prefs.item_text[prefs.rejected[n]]]),
            "user_id": prefs.user_ids[prefs.user_index[n]],
        }
        for n in range(2000)
    ]
    found = leak_check(read_preferences(write(leaked)), seed=0)
    assert found["alarm"] and found["accuracy"] > 0.99
    assert describe(read_preferences(write(leaked)))["items_on_both_sides"] == 0
