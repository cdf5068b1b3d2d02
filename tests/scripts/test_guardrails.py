"""The claims of docs/results/guardrails.md, on fewer people."""

import numpy as np
import pytest

from scripts.experiments import guardrails


@pytest.fixture(scope="module")
def flattering():
    return guardrails.world(1, 0.6, 100)


def test_the_mean_is_no_rail_where_it_flatters_and_the_half_space_is(flattering):
    found = guardrails.measured(flattering)
    base = found["base"]["agreement"]
    assert found["aggregate"]["agreement"] > found["personal"]["agreement"] > base + 0.05
    for name in ("half-space", "λ*"):
        assert found[name]["agreement"] <= base + 0.01 and found[name]["over_10_points"] == 0
        assert found[name]["taste_kept"] >= 0.95
    assert found["lock at the mean"]["agreement"] > base + 0.05
    assert found["shrink 50 %"]["taste_kept"] < 0.8


def test_the_mean_is_a_rail_where_it_dislikes_flattery():
    found = guardrails.measured(guardrails.world(1, -0.3, 100))
    assert found["aggregate"]["agreement"] < found["personal"]["agreement"]


def test_errors_of_the_detector_hurt_the_penalty_more(flattering):
    def agreement(name, error):
        flagged = guardrails.seen(flattering.agrees, error, 0)
        return (guardrails.scheme(name, flattering, flagged) * flattering.agrees).sum(axis=-1).mean()

    assert agreement("half-space", 0.3) - agreement("half-space", 0.0) < 0.03
    assert agreement("λ*", 0.3) - agreement("λ*", 0.0) > 0.08
    assert np.isclose(guardrails.seen(flattering.agrees, 0.3, 0).mean(), 0.35 * 0.7 + 0.65 * 0.3, atol=0.03)
