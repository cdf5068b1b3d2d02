import jax
import numpy as np
import pytest
from scipy.special import expit, log_expit

from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.errors import UserError
from rewards.people import calibration
from rewards.people.calibration import Calibration

SIZE, ANSWERS = 4, 10
PRIOR = Belief.from_cov(np.full(SIZE, 0.6, np.float32), np.eye(SIZE, dtype=np.float32))


def answered(seed, people):
    """People of the population, ten random pairs each, and margins to predict."""
    rng = np.random.default_rng(seed)
    coef = np.float32(0.6 + rng.normal(size=(people, SIZE)))
    delta = np.float32(2.5 * rng.normal(size=(people, ANSWERS, SIZE)))
    likes = np.float32(rng.random((people, ANSWERS)) < expit(np.einsum("unk,uk->un", delta, coef)))
    return coef, delta, likes, np.float32(rng.normal(size=(50, SIZE)))


def laplace(delta, likes):
    result = users.laplace(PRIOR.mean, PRIOR.precision, delta, likes, np.ones_like(likes), np.float32(0))
    return tuple(map(np.asarray, result))


def test_scaled_posterior_covers_what_it_says():
    """3,000 people: the standard error of a coverage of 95 % is 0.4 points, the band is ± 2."""
    coef, delta, likes, margins = answered(0, 3000)
    mean, hessian = laplace(delta, likes)
    raw = calibration.coverage(coef, mean, hessian, margins)
    assert raw["region"] < 0.92 and raw["margin"] < 0.935
    _, other, _, _ = answered(1, 3000)
    fitted = calibration.fit_scale(PRIOR, other, margins, (5, ANSWERS), key=jax.random.key(0))
    for of in ("region", "margin"):
        one = Belief.from_precision(mean[0], hessian[0], ANSWERS)
        ratio = hessian[0, 0, 0] / fitted.scaled(one, of=of).precision[0, 0]
        covered = calibration.coverage(coef, mean, hessian / ratio, margins)[of]
        assert 0.93 <= covered <= 0.97
        assert ratio == pytest.approx(getattr(fitted, of)[1], rel=1e-5) and ratio > 1.1


def test_pairs_without_a_difference_change_no_scale():
    """Two texts with the same features: their margin is 0 and certain, which is no error to be covered."""
    coef, delta, likes, margins = answered(3, 200)
    mean, hessian = laplace(delta, likes)
    expected = calibration.scale_of(coef, mean, hessian, margins)
    more = np.concatenate([margins, np.zeros((40, SIZE), np.float32)])
    np.testing.assert_allclose(calibration.scale_of(coef, mean, hessian, more), expected)
    assert np.isfinite(calibration.scale_of(coef, mean, hessian, np.zeros((3, SIZE)))).all()


def test_without_answers_nothing_is_scaled():
    calibrated = Calibration((5, 20), (1.5, 1.2), (1.3, 1.1))
    prior = Belief.from_precision(PRIOR.mean, PRIOR.precision, 0)
    np.testing.assert_array_equal(calibrated.scaled(prior).precision, PRIOR.precision)
    between = calibrated.scaled(Belief.from_precision(PRIOR.mean, PRIOR.precision, 10))
    np.testing.assert_allclose(between.precision, PRIOR.precision / 1.4, rtol=1e-6)


def test_sampler_agrees_with_integration_on_a_grid():
    rng = np.random.default_rng(2)
    prior = Belief.from_cov(np.float32([0.5, -0.2]), np.float32([[1.0, 0.3], [0.3, 2.0]]))
    delta = np.float32(2 * rng.normal(size=(1, 8, 2)))
    likes = np.ones((1, 8), np.float32)  # all one way: a skewed posterior
    delta *= np.sign(delta @ np.float32([1.0, 0.5]))[..., None]
    samples = calibration.sample(
        prior.mean,
        prior.precision,
        delta,
        likes,
        np.ones_like(likes),
        np.float32(0),
        jax.random.key(0),
        steps=6000,
    )
    axis = np.linspace(-6, 10, 401)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    deviation = grid - prior.mean
    logs = log_expit(grid @ delta[0].T.astype(np.float64)).sum(axis=1)
    logs -= 0.5 * np.sum((deviation @ np.linalg.inv(prior.cov)) * deviation, axis=1)
    share = np.exp(logs - logs.max())
    share /= share.sum()
    mean = share @ grid
    cov = (grid - mean).T @ ((grid - mean) * share[:, None])
    drawn = np.asarray(samples)[0]
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), cov, atol=0.15)
    mode = users.posterior(prior, delta[0], likes[0]).mean
    assert np.max(np.abs(mode - mean)) > 0.2  # which is why Laplace needs calibration


def test_sampler_covers():
    """300 people: standard error 1.3 points. With few samples the region is estimated too small, hence 1,000."""
    coef, delta, likes, margins = answered(3, 300)
    samples = calibration.sample(
        PRIOR.mean,
        PRIOR.precision,
        delta,
        likes,
        np.ones_like(likes),
        np.float32(0),
        jax.random.key(1),
        steps=1000,
    )
    covered = calibration.sampled_coverage(coef, np.asarray(samples), margins)
    assert 0.92 <= covered["region"] <= 0.98 and 0.93 <= covered["margin"] <= 0.97


def test_reliability_shows_overconfidence():
    rng = np.random.default_rng(4)
    margin = 2 * rng.normal(size=20000)
    outcome = (rng.random(20000) < expit(margin)).astype(np.float64)
    honest = calibration.reliability(margin, np.zeros(20000), outcome)
    assert max(abs(row["predicted"] - row["observed"]) for row in honest) < 0.04
    boasting = calibration.reliability(3 * margin, np.zeros(20000), outcome)
    assert boasting[0]["observed"] - boasting[0]["predicted"] > 0.03
    assert sum(row["answers"] for row in boasting) == 20000


def test_json_round_trip_and_damage():
    calibrated = Calibration((5, 20), (1.5, 1.2), (1.3, 1.1))
    assert Calibration.from_json(calibrated.to_json(), "run") == calibrated
    for damage in (
        {"counts": [5]},
        {"region": [1.0, "x"]},
        {"level": 2},
        {"counts": [20, 5]},
        {"margin": [0, 1]},
    ):
        with pytest.raises(UserError, match="run: calibration is damaged"):
            Calibration.from_json(calibrated.to_json() | damage, "run")
    with pytest.raises(UserError, match="answers of a person"):
        calibration.fit_scale(PRIOR, answered(0, 4)[1], np.eye(4), (11,), key=jax.random.key(0))
