import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.errors import UserError


def make_prior(rng, size, mean=True):
    factor = rng.normal(size=(size, size)) / size + 0.6 * np.eye(size)
    center = 0.7 * rng.normal(size=size) if mean else np.zeros(size)
    return Belief.from_cov(center.astype(np.float32), (factor @ factor.T).astype(np.float32))


def test_no_answers_is_exactly_the_prior():
    prior = make_prior(np.random.default_rng(0), 4)
    posterior = users.posterior(prior, np.zeros((0, 4)), np.zeros(0))
    np.testing.assert_array_equal(posterior.mean, prior.mean)
    np.testing.assert_array_equal(posterior.precision, prior.precision)
    assert posterior.num_answers == 0
    mean, precisions = users.posteriors(prior, np.array([1]), np.ones((1, 4)), np.ones(1), num_users=2)
    np.testing.assert_array_equal(mean[0], prior.mean)
    np.testing.assert_array_equal(precisions[0], prior.precision)


def test_map_equals_scikit_learn_on_whitened_features():
    rng = np.random.default_rng(1)
    prior, delta = make_prior(rng, 5, mean=False), rng.normal(size=(60, 5)).astype(np.float32)
    outcome = (rng.random(60) < expit(delta @ np.array([1.0, -2, 0.5, 0, 1]))).astype(np.float32)
    root = np.linalg.cholesky(prior.cov.astype(np.float64))
    model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(delta @ root, outcome)
    posterior = users.posterior(prior, delta, outcome)
    np.testing.assert_allclose(posterior.mean, root @ model.coef_[0], atol=2e-4)
    p = expit(delta @ posterior.mean)
    hessian = np.linalg.inv(prior.cov) + (delta * (p * (1 - p))[:, None]).T @ delta
    np.testing.assert_allclose(posterior.precision, hessian, rtol=1e-3, atol=1e-3)


def test_map_with_prior_mean_ties_and_lapse_equals_a_general_optimiser():
    rng = np.random.default_rng(2)
    prior, delta = make_prior(rng, 3), rng.normal(size=(25, 3))
    # Answers of one person, some turned into ties; with a lapse, random answers would have several optima.
    outcome = np.where(rng.random(25) < 0.2, 0.5, delta @ [1.0, -0.6, 0.3] > 0)
    lapse = 0.1

    def objective(coef):
        p = lapse / 2 + (1 - lapse) * expit(delta @ coef)
        deviation = coef - prior.mean
        penalty = 0.5 * deviation @ np.linalg.inv(prior.cov.astype(np.float64)) @ deviation
        return -np.sum(outcome * np.log(p) + (1 - outcome) * np.log(1 - p)) + penalty

    best = minimize(objective, prior.mean.astype(np.float64), method="BFGS", options={"gtol": 1e-8})
    posterior = users.posterior(prior, delta, outcome, lapse=lapse)
    np.testing.assert_allclose(posterior.mean, best.x, atol=1e-3)


def test_separable_answers_with_a_vague_prior_converge():
    # Undamped Newton overshoots here: all answers agree and the prior hardly holds.
    delta = np.linspace(1, 30, 40)[:, None].astype(np.float32)
    prior = Belief.from_cov(np.zeros(1, np.float32), np.full((1, 1), 1e4, np.float32))
    coef = users.posterior(prior, delta, np.ones(40)).mean[0]
    stationary = coef / 1e4 - np.sum(delta[:, 0].astype(np.float64) * expit(-delta[:, 0] * float(coef)))
    assert 1 < coef < 20 and abs(stationary) < 1e-4


@pytest.mark.parametrize("start", [4.0, -6.0, 8.0, -8.0, 10.0])
def test_a_start_far_from_the_optimum_needs_damping(start):
    """Where answers that contradict the prior's mean have flat slopes, a full Newton step flies past everything."""
    prior = Belief.from_cov(np.full(1, start, np.float32), np.full((1, 1), 1e6, np.float32))
    found = users.posterior(prior, np.ones((2, 1), np.float32), np.array([1.0, 0.0])).mean[0]
    assert abs(found) < 1e-2


def test_result_does_not_depend_on_padding_order_or_company():
    rng = np.random.default_rng(3)
    prior = make_prior(rng, 4)
    counts = [3, 70, 0, 16, 17]
    index = rng.permutation(np.repeat(np.arange(5), counts))
    delta, outcome = rng.normal(size=(len(index), 4)), rng.choice([0, 1], len(index))
    mean, precisions = users.posteriors(prior, index, delta, outcome, num_users=5)
    for user in range(5):
        alone = users.posterior(prior, delta[index == user], outcome[index == user])
        np.testing.assert_allclose(mean[user], alone.mean, atol=2e-5)
        np.testing.assert_allclose(precisions[user], alone.precision, rtol=1e-4, atol=1e-4)


def test_ten_new_people_compile_nothing():
    rng = np.random.default_rng(4)
    prior = make_prior(rng, 6)
    users.posterior(prior, rng.normal(size=(1, 6)), np.ones(1))
    before = users.laplace._cache_size()
    for answers in range(2, 13):
        users.posterior(make_prior(rng, 6), rng.normal(size=(answers, 6)), np.ones(answers))
    assert users.laplace._cache_size() == before


@pytest.mark.parametrize(
    ("delta", "outcome", "message"),
    [
        (np.ones((2, 3)), np.ones(2), "basis of 4"),
        (np.full((1, 4), np.nan), np.ones(1), "not finite"),
        (np.ones((1, 4)), np.array([2.0]), "outcome"),
    ],
)
def test_bad_answers_are_named(delta, outcome, message):
    with pytest.raises(UserError, match=message):
        users.posterior(make_prior(np.random.default_rng(6), 4), delta, outcome)


def test_thousands_of_people_equal_each_alone():
    rng = np.random.default_rng(7)
    prior, people = make_prior(rng, 4), users.MAX_PEOPLE + 90
    index = rng.permutation(np.repeat(np.arange(people), rng.integers(1, 14, people)))
    delta, outcome = rng.normal(size=(len(index), 4)), rng.choice([0, 0.5, 1], len(index))
    mean, precisions = users.posteriors(prior, index, delta, outcome, num_users=people)
    for user in (0, users.MAX_PEOPLE - 1, users.MAX_PEOPLE, people - 1):
        alone = users.posterior(prior, delta[index == user], outcome[index == user])
        np.testing.assert_allclose(mean[user], alone.mean, atol=2e-5)
        np.testing.assert_allclose(precisions[user], alone.precision, rtol=1e-4, atol=1e-4)


def test_large_and_small_systems_are_solved_alike():
    rng = np.random.default_rng(8)
    for size in (3, users.UNROLLED, users.UNROLLED + 1):
        factor = rng.normal(size=(size, size)) + np.eye(size)
        matrix, vector = np.float32(factor @ factor.T + 0.1 * np.eye(size)), np.float32(rng.normal(size=size))
        np.testing.assert_allclose(matrix @ users.solve(matrix, vector), vector, atol=5e-3)


def test_an_answer_twice_is_an_answer_of_weight_2():
    rng = np.random.default_rng(9)
    prior, index = make_prior(rng, 3), np.repeat(np.arange(4), 5)
    delta, outcome = rng.normal(size=(20, 3)), rng.choice([0, 0.5, 1], 20)
    weight = np.where(np.arange(20) % 3 == 0, 2.0, 1.0)
    twice = np.concatenate([np.arange(20), np.flatnonzero(weight == 2)])
    weighted = users.posteriors(prior, index, delta, outcome, num_users=4, weight=weight)
    doubled = users.posteriors(prior, index[twice], delta[twice], outcome[twice], num_users=4)
    for one, other in zip(weighted, doubled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    halved = users.posteriors(prior, index, delta, outcome, num_users=4, weight=weight / 2)
    assert np.abs(halved[1] - weighted[1]).max() > 0.05
