"""Calibrated mixes: distances by hand, credits against differences, slates against all of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.evaluation.probes import figures
from rlhf.objectives import calibration, rails


def test_the_distance_is_that_of_the_probe():
    wanted, shown = np.array([0.7, 0.3, 0.0]), np.array([0.2, 0.0, 0.8])
    np.testing.assert_allclose(
        calibration.distance(wanted, shown), figures.calibration(wanted, shown), rtol=1e-5
    )
    np.testing.assert_allclose(calibration.distance(wanted, wanted), 0.0, atol=1e-6)


def test_a_credit_is_what_a_completion_changes():
    rng = np.random.default_rng(0)
    kinds = np.eye(3)[rng.integers(0, 3, 8)]
    wanted, share = np.array([0.5, 0.3, 0.2]), np.full(8, 1 / 8)
    found = np.asarray(calibration.credit(jnp.asarray(wanted), jnp.asarray(share), jnp.asarray(kinds)))
    whole = figures.calibration(wanted, kinds.mean(axis=0))
    for i in range(8):
        without = figures.calibration(wanted, np.delete(kinds, i, axis=0).mean(axis=0))
        np.testing.assert_allclose(found[i], 7 * (without - whole), atol=1e-4)


def test_the_greedy_slate_is_near_the_best_of_all():
    rng = np.random.default_rng(1)
    score, kinds, wanted = rng.normal(size=9), np.eye(2)[rng.integers(0, 2, 9)], np.array([0.7, 0.3])

    def worth(chosen):
        shown = kinds[list(chosen)].mean(axis=0)
        return 0.5 * score[list(chosen)].mean() - 0.5 * figures.calibration(wanted, shown)

    best = max(map(worth, itertools.combinations(range(9), 4)))
    chosen = calibration.greedy_slate(score, kinds, wanted, 4)
    assert len(set(chosen)) == 4 and worth(chosen) >= best - 0.05
    assert calibration.greedy_slate(score, kinds, wanted, 4, trade=0.0) == np.argsort(-score)[:4].tolist()
    for size, trade in ((0, 0.5), (10, 0.5), (4, 1.5)):
        with pytest.raises(UserError, match="slate: "):
            calibration.greedy_slate(score, kinds, wanted, size, trade)


def test_a_stated_confidence_is_best_when_it_is_right():
    right = 0.7
    said = np.linspace(0, 1, 101)
    c = jnp.ones(101)
    paid = [np.asarray(rails.honest_disagreement(corrects, jnp.asarray(said))) for corrects in (c, 0 * c)]
    expected = right * paid[0] + (1 - right) * paid[1]
    assert said[np.argmax(expected)] == pytest.approx(right)
    assert rails.honest_disagreement(c)[0] == 1.0 and -1.0 <= expected.min()
