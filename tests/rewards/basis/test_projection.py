"""The projection against an independent slow solution: least distance programming by non-negative least squares."""

import jax
import numpy as np
import pytest
from scipy.optimize import nnls

from rewards.basis import projection
from rewards.basis.belief import Belief
from rewards.basis.rails import stated
from rewards.errors import UserError


def rails_of(size, **given):
    return stated(given, [f"a{k}" for k in range(size)], "basis", "rails.yaml")


def half_spaces(rows, bound):
    return [
        {"name": f"h{i}", "direction": row.tolist(), "limit": float(limit)}
        for i, (row, limit) in enumerate(zip(rows, bound, strict=True))
    ]


def slowly(coef, metric, rows, bound):
    """argmin (v − w)ᵀ M⁻¹ (v − w) s.t. rows v ≤ bound (Lawson and Hanson 1974, ch. 23)."""
    root = np.linalg.cholesky(metric)
    system = np.vstack([-(rows @ root).T, rows @ coef - bound])
    target = np.append(np.zeros(len(root)), 1.0)
    rest = system @ nnls(system, target)[0] - target
    return coef - root @ rest[:-1] / rest[-1]


def random_cov(rng, size):
    half = rng.normal(size=(size, size))
    return (half @ half.T / size + 0.1 * np.eye(size)).astype(np.float32)


@pytest.mark.parametrize("size,count", [(2, 3), (8, 32), (32, 32)])
def test_the_nearest_coefficients_within_half_spaces(size, count):
    """Also when a third of the limits are nearly the same and as many are active as there are axes."""
    rng = np.random.default_rng(size + count)
    cov, rows = random_cov(rng, size), rng.normal(size=(count, size))
    rows[: count // 3] = rows[0] + 0.1 * rng.normal(size=(count // 3, size))
    bound = rng.uniform(0, 1, count)
    prior = Belief.from_cov(np.zeros(size, np.float32), cov)
    limits = projection.limits(rails_of(size, half_spaces=half_spaces(rows, bound)), prior, 1.0)
    coef = (2 * rng.normal(size=(40, size))).astype(np.float32)
    found = np.asarray(projection.project(limits, coef))
    wanted = [slowly(one.astype(float), cov.astype(float), rows, bound) for one in coef]
    np.testing.assert_allclose(found, wanted, atol=1e-3 if count > size else 1e-4)
    assert projection.within(limits, found).all() and not projection.within(limits, coef).all()
    inside = (coef @ rows.T <= bound).all(axis=1)
    np.testing.assert_array_equal(found[inside], coef[inside])
    np.testing.assert_allclose(np.asarray(projection.project(limits, found)), found, atol=1e-4)


def test_one_half_space_has_a_closed_form():
    rng = np.random.default_rng(0)
    cov, direction = random_cov(rng, 5), rng.normal(size=5)
    prior = Belief.from_cov(np.zeros(5, np.float32), cov)
    limits = projection.limits(rails_of(5, half_spaces=half_spaces([direction], [0.3])), prior, 1.0)
    coef = rng.normal(size=(50, 5)).astype(np.float32)
    over = np.maximum(coef @ direction - 0.3, 0.0)[:, None]
    wanted = coef - over * (cov @ direction) / (direction @ cov @ direction)
    np.testing.assert_allclose(projection.project(limits, coef), wanted, atol=1e-5)


def test_what_is_said_of_a_locked_axis_is_heard_nowhere():
    """Even where axes are correlated and half-spaces join them, nothing depends on a locked coefficient."""
    rng = np.random.default_rng(1)
    prior = Belief.from_cov(np.array([0.8, -0.2, 0.5], np.float32), random_cov(rng, 3))
    rails = rails_of(
        3, axes=[{"name": "a0", "locked": -0.4}], half_spaces=half_spaces([np.array([1.0, 1.0, -1.0])], [0.1])
    )
    limits = projection.limits(rails, prior, 1.0)
    coef = rng.normal(size=(100, 3)).astype(np.float32)
    other = coef.copy()
    other[:, 0] = 1e3 * rng.normal(size=100)
    found = np.asarray(projection.project(limits, coef))
    np.testing.assert_array_equal(np.asarray(projection.project(limits, other)), found)
    assert (found[:, 0] == np.float32(-0.4)).all()
    free = coef[:, 1] - coef[:, 2] - 0.4 <= 0.1
    np.testing.assert_array_equal(found[free, 1:], coef[free, 1:])
    assert 20 < free.sum() < 80


def test_locks_bounds_and_half_spaces_together():
    """As inequalities from both sides, the independent solution meets a lock as well."""
    rng = np.random.default_rng(2)
    cov, rows, bound = random_cov(rng, 6), rng.normal(size=(4, 6)), np.full(4, 0.4)
    prior = Belief.from_cov(rng.normal(size=6).astype(np.float32), cov)
    axes = [{"name": "a1", "locked": 0.2}, {"name": "a3", "low": -0.5, "high": 0.25}]
    limits = projection.limits(rails_of(6, axes=axes, half_spaces=half_spaces(rows, bound)), prior, 1.0)
    unit = np.eye(6)
    every = np.vstack([rows, unit[1], -unit[1], unit[3], -unit[3]])
    most = np.append(bound, [0.2, -0.2, 0.25, 0.5])
    coef = (2 * rng.normal(size=(60, 6))).astype(np.float32)
    found = np.asarray(projection.project(limits, coef))
    asked = coef.astype(float)
    asked[:, 1] = 0.2
    wanted = [slowly(one, cov.astype(float), every, most) for one in asked]
    np.testing.assert_allclose(found, wanted, atol=3e-4)
    assert (found[:, 1] == np.float32(0.2)).all()
    assert found[:, 3].min() >= np.float32(-0.5) and found[:, 3].max() <= np.float32(0.25)


def test_a_metric_of_each_person():
    """One compiled projection serves people with posteriors of their own."""
    rng = np.random.default_rng(3)
    rails = rails_of(4, half_spaces=half_spaces(rng.normal(size=(3, 4)), np.zeros(3)))
    prior = Belief.from_cov(np.zeros(4, np.float32), np.eye(4, dtype=np.float32))
    covs = [random_cov(rng, 4) for _ in range(6)]
    coef = rng.normal(size=(6, 4)).astype(np.float32)
    each = [projection.limits(rails, prior, 1.0, cov) for cov in covs]
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *each)
    together = jax.vmap(projection.project)(stacked, coef)
    rows = np.array([half.direction for half in rails.half_spaces])
    wanted = [slowly(one, cov, rows, np.zeros(3)) for one, cov in zip(coef, covs, strict=True)]
    np.testing.assert_allclose(together, wanted, atol=1e-4)


def test_trust_region_is_a_ball_of_nats_around_the_aggregate():
    prior = Belief.from_cov(np.array([1.0, 0.0], np.float32), np.eye(2, dtype=np.float32))
    limits = projection.limits(rails_of(2, trust_nats=2.0), prior, 0.5)
    coef = np.array([[1.0, 9.0], [1.0, -0.1], [-8.0, 4.0]], np.float32)
    found = np.asarray(projection.project(limits, coef))
    nats = np.sum((found - prior.mean) ** 2, axis=1) / (2 * 0.5**2)
    np.testing.assert_allclose(nats[[0, 2]], 2.0, rtol=1e-5)
    np.testing.assert_array_equal(found[1], coef[1])
    away = (found - prior.mean)[2] / (coef - prior.mean)[2]
    assert away[0] == pytest.approx(away[1])


def test_limits_that_contradict_one_another_are_refused_by_name():
    prior = Belief.from_cov(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    up, down = (
        {"name": "up", "direction": [1, 0], "limit": -1},
        {"name": "down", "direction": [-1, 0], "limit": 0},
    )
    with pytest.raises(UserError, match="half-space 'up' ≤ -1 and half-space 'down'.* cannot hold together"):
        projection.limits(rails_of(2, half_spaces=[up, down]), prior, 1.0)
    with pytest.raises(UserError, match="'up' ≤ -1 cannot be met: the locked values alone give 0.5"):
        projection.limits(rails_of(2, half_spaces=[up], axes=[{"name": "a0", "locked": 0.5}]), prior, 1.0)
    limits = projection.limits(
        rails_of(2, axes=[{"name": f"a{k}", "locked": k} for k in range(2)]), prior, 1.0
    )
    np.testing.assert_array_equal(projection.project(limits, np.array([[5.0, 5.0]], np.float32)), [[0, 1]])


def test_more_people_compile_nothing_and_what_was_done_is_said():
    rng = np.random.default_rng(4)
    prior = Belief.from_cov(np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    axes = [{"name": "a0", "locked": 0.0}, {"name": "a1", "low": -1, "high": 1}]
    rails = rails_of(3, axes=axes, half_spaces=half_spaces([np.array([0.0, 0.0, 1.0])], [0.5]))
    limits = projection.limits(rails, prior, 1.0)
    projection.project(limits, rng.normal(size=(7, 3)).astype(np.float32))
    before = projection.project._cache_size()
    projection.project(limits._replace(bound=limits.bound + 1), rng.normal(size=(7, 3)).astype(np.float32))
    assert projection.project._cache_size() == before
    asked = np.array([2.0, -3.0, 0.7], np.float32)
    said = projection.actions(rails, asked, np.asarray(projection.project(limits, asked)))
    assert said == [
        "a0 +2 → +0 (locked at +0)",
        "a1 -3 → -1 (bounded to [-1, +1])",
        "h0 was 0.2 over its limit +0.5",
    ]
    assert projection.actions(rails, np.array([0.0, 0.5, 0.1]), np.array([0.0, 0.5, 0.1])) == []
