"""A short version of scripts/experiments/cold_start.py: the table's main rows within its tolerance."""

import numpy as np
import pytest

from scripts.experiments import cold_start


@pytest.fixture(scope="module")
def curves():
    counts, out = (0, 2, 5, 10), {}
    for population, deviation in cold_start.POPULATIONS.items():
        world = cold_start.make_world(5, 120, deviation)
        for name in ("random, ridge-MLE", "random, MAP", "information gain, MAP"):
            rule, knows = cold_start.ARMS[name]
            coef = cold_start.run_arm(world, deviation, rule, knows, 5, 10)[0]
            out[population, name] = dict(zip(counts, cold_start.curve(world, coef, counts), strict=True))
    return out


def test_the_population_is_worth_its_answers(curves):
    """120 people: the standard error of a mean AUC is below 0.012 without answers, 0.006 with ten."""
    best = curves["diverse", "information gain, MAP"]
    assert best[0] == pytest.approx(0.712, abs=0.03) and best[10] >= 0.88
    similar = curves["similar", "information gain, MAP"]
    assert similar[0] == pytest.approx(0.853, abs=0.02) and similar[10] > similar[0]
    assert curves["diverse", "random, ridge-MLE"][10] == pytest.approx(0.828, abs=0.025)
    # With close tastes, ten answers without a population are worse than none with it.
    assert curves["similar", "random, ridge-MLE"][10] < similar[0] - 0.05


def test_chosen_questions_are_never_worse_than_random_ones(curves):
    for population in cold_start.POPULATIONS:
        chosen, random = (curves[population, f"{name}, MAP"] for name in ("information gain", "random"))
        assert all(chosen[n] >= random[n] - 1e-3 for n in (2, 5, 10))
    assert chosen[0] == random[0]


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(0)
    margin, likes = rng.integers(0, 4, (1, 30)).astype(float), rng.random((1, 30)) < 0.5
    up, down = margin[likes], margin[~likes]
    expected = np.mean((up[:, None] > down) + 0.5 * (up[:, None] == down))
    assert cold_start.auc(margin, likes) == pytest.approx(expected)
