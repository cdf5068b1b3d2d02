import json

import numpy as np
import pytest

from rewards.annotation.planner import AUDIT_SHARE, MEASURED, constants, plan, predicted_loss
from rewards.errors import UserError


def test_the_law_goes_through_the_measured_points():
    fitted = predicted_loss(
        MEASURED.labels, np.array(MEASURED.raters), MEASURED.num_basis, MEASURED.dims, MEASURED.spread
    )
    np.testing.assert_allclose(MEASURED.oracle - fitted, MEASURED.accuracy, atol=0.008)
    assert np.all(constants() >= 0)


def test_the_plan_lands_on_the_measured_optimum():
    result = plan(6000)
    assert 30 <= result["raters"] <= 150
    assert result["flat"][0] <= 30 and result["flat"][1] >= 150
    assert result["audit_repeats"] == round(AUDIT_SHARE * 6000) and 0.10 <= AUDIT_SHARE <= 0.15
    assert result["distinct_pairs"] + result["audit_repeats"] == 6000
    assert not result["law"]["extrapolated"]
    losses = {row["raters"]: row["loss"] for row in result["table"]}
    assert min(losses.values()) == losses[result["raters"]]
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("raters", "advice"), [(6, "more raters"), (2000, "fewer raters")])
def test_bad_divisions_are_told_what_they_cost(raters, advice):
    result = plan(6000, raters=raters)
    assert result["loss"] > 0.02 and advice in result["advice"]


def test_the_optimum_balances_the_two_rater_terms():
    """d/dm (b K/m + c K m/N) = 0 at m = √(b N/c)."""
    _, b, c = constants()
    result = plan(60000)
    assert result["best_raters"] == pytest.approx(np.sqrt(b * result["distinct_pairs"] / c), rel=0.05)
    assert result["law"]["extrapolated"]


def test_smaller_tastes_want_more_pairs_from_each():
    assert plan(6000, spread=0.4)["pairs_per_rater"] > plan(6000)["pairs_per_rater"]
    assert plan(6000, spread=2.0)["pairs_per_rater"] < plan(6000)["pairs_per_rater"]


@pytest.mark.parametrize(
    "change",
    [{"labels": 5}, {"raters": 1}, {"raters": 5999}, {"num_basis": 0}, {"spread": 0.0}, {"dims": -1}],
)
def test_impossible_plans_are_refused(change):
    with pytest.raises(UserError) as caught:
        plan(**({"labels": 6000} | change))
    assert "\n" not in str(caught.value)
