"""What an axis goes with: planted traits and words are found, noise gets no words, records are strict."""

import numpy as np
import pytest

from rewards.basis import gauge, meaning, store
from rewards.basis.belief import Belief
from rewards.basis.meaning import Meaning
from rewards.data.read import read_preferences
from rewards.data.surface import TRAITS
from rewards.errors import UserError
from rewards.types import Preferences

WORDS = ("red", "green", "blue", "small", "large", "round", "square", "old", "new", "soft")
PROMPTS, EACH = 60, 6


@pytest.fixture(scope="module")
def prefs() -> Preferences:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 30))) for _ in range(PROMPTS * EACH)]
    rows = [
        {"user_id": "ada", "prompt": f"Question {i // EACH}", "chosen": texts[i], "rejected": texts[i + 1]}
        for i in range(0, len(texts), 2)
    ]
    return read_preferences(rows)


def planted(prefs: Preferences, rng: np.random.Generator) -> np.ndarray:
    """Three axes: longer and without “red”, noise, fewer words; all with a shift per prompt that means nothing."""
    length = np.array([TRAITS["log words"](text) for text in prefs.item_text])
    red = np.array(["red" in text.split() for text in prefs.item_text])
    noise = rng.normal(size=(3, prefs.num_items))
    axes = [length / length.std() - 2.0 * red + 0.2 * noise[0], noise[1], 0.3 * noise[2] - length]
    return np.stack(axes, axis=1) + 10.0 * rng.normal(size=(PROMPTS, 3))[prefs.item_prompt]


def test_planted_traits_and_words_are_found_and_noise_has_no_words(prefs):
    both, noise, short = meaning.measure(prefs, planted(prefs, np.random.default_rng(1)))
    assert dict(both.parts).keys() >= {"“red”"} and dict(both.parts)["“red”"] < 0
    assert "longer" in both.words and "does not say “red”" in both.words and both.explained > 0.8
    assert noise == Meaning() and noise.label("taste 2") == "taste 2"
    assert short.label("taste 3") == "taste 3 (shorter)"


def test_chance_alone_rarely_names_an_axis(prefs):
    found = meaning.measure(prefs, np.random.default_rng(2).normal(size=(prefs.num_items, 2000)))
    assert 1 <= sum(bool(one.parts) for one in found) <= 20  # 2000 × 0.005 expected


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_texts_name_nothing(prefs, count):
    few = prefs.select(np.arange(prefs.num_comparisons) < count)
    assert meaning.measure(few, planted(prefs, np.random.default_rng(1))) == (Meaning(),) * 3


def test_texts_that_differ_in_nothing_that_is_looked_at_name_nothing():
    rows = [
        {
            "user_id": "ada",
            "prompt": f"Question {n}",
            "chosen": f"ab{n:02d} it",
            "rejected": f"cd{n:02d} it",
        }
        for n in range(40)
    ]
    prefs = read_preferences(rows)
    phi = np.random.default_rng(0).normal(size=(prefs.num_items, 2))
    assert meaning.measure(prefs, phi) == (Meaning(), Meaning())


def test_an_axis_without_any_spread_has_no_words(prefs):
    assert meaning.measure(prefs, np.zeros((prefs.num_items, 2))) == (Meaning(),) * 2


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    basis, prior, _ = gauge.canonicalise(
        rng.normal(size=(4, 2)),
        Belief.from_cov(rng.normal(size=2), np.eye(2)),
        rng.normal(size=(40, 4)).astype(np.float32),
        np.zeros(40, int),
        encoder={"kind": "columns", "names": list("abcd")},
    )
    store.save_reward_run(tmp_path, basis, prior)
    return store.load_reward_run(tmp_path)


def test_what_is_written_is_read_and_an_older_run_has_no_words(run):
    names = run.basis.gauge.names
    assert meaning.read(run) == dict.fromkeys(names, Meaning())
    found = (Meaning((("log words", 0.5), ("“red”", -0.25)), 0.3), Meaning())
    meaning.write(run.directory, run.hash, names, found)
    assert meaning.read(run) == dict(zip(names, found, strict=True))


@pytest.mark.parametrize("basis, count", [("another", 2), ("own", 1)])
def test_words_of_another_basis_are_refused(run, basis, count):
    names = run.basis.gauge.names[:count]
    meaning.write(run.directory, run.hash if basis == "own" else basis, names, (Meaning(),) * count)
    with pytest.raises(UserError, match=r"axes\.json: not of this run's basis"):
        meaning.read(run)
