import itertools

import jax
import numpy as np
import pytest
from scipy.special import expit, xlogy

from rewards.errors import UserError
from rewards.people import acquisition, questions
from rewards.people.acquisition import AnswerModel, Belief
from rewards.types import GroupPrior, UserPosterior


def entropy(p):
    return -(xlogy(p, p) + xlogy(1 - p, 1 - p))


def world(seed, size=4, count=6):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, size)) + 0.3 * np.eye(size)
    return rng, 0.7 * rng.normal(size=size), factor @ factor.T, rng.normal(size=(count, size))


def posterior_of(mean, cov):
    return UserPosterior(np.float32(mean), np.float32(np.linalg.inv(cov)), 0)


def test_mixture_gain_equals_monte_carlo():
    rng, mean, cov, candidates = world(0)
    model = AnswerModel(0.6, 0.25, 0.15, np.float32([0, 2, -2, 4, 0, 1]))
    coef = rng.multivariate_normal(mean, cov, size=400_000)
    p = 0.6 * expit(coef @ candidates.T) + 0.125 + 0.15 * expit(model.pull)
    expected = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
    _, gains = questions.choose(posterior_of(mean, cov), candidates, model=model)
    np.testing.assert_allclose(gains, expected, atol=2e-3)
    assert expected.max() > 0.03


@pytest.mark.parametrize(
    "model",
    [
        AnswerModel(),
        AnswerModel(0.6, 0.25, 0.15, 2.0),
        AnswerModel(0.3, 0.7),
        AnswerModel(0.9, 0.0, 0.1, -1.0),
        AnswerModel.lapsing(0.2),
        AnswerModel(
            np.float32([1, 0.5, 0.8]),
            np.float32([0, 0.5, 0.1]),
            np.float32([0, 0, 0.1]),
            np.float32([0, 0, 3]),
        ),
    ],
)
def test_fisher_information_is_that_of_the_answers_distribution(model):
    """Σ_y (dP(y|s)/ds)² / P(y|s), the derivative by differences in float64."""
    margin = np.array([[-2.0, 0.1], [0.0, 1.5], [3.0, -0.4]])
    genuine, coin, framed, pull = (np.broadcast_to(np.asarray(part, float), 3)[:, None] for part in model)

    def up(s):
        return genuine * expit(s) + 0.5 * coin + framed * expit(pull)

    slope, p = (up(margin + 1e-5) - up(margin - 1e-5)) / 2e-5, up(margin)
    expected = slope**2 / p + slope**2 / (1 - p)
    found = acquisition.fisher_information(np.float32(margin), model)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def test_nothing_is_learned_from_people_without_an_opinion():
    _, mean, cov, candidates = world(1)
    share = np.float32([1, 0.5, 0, 0, 0, 0])  # of genuine answers, by candidate
    model = AnswerModel(share, 1 - share, 0.0, 0.0)
    _, gains = questions.choose(posterior_of(mean, cov), np.tile(candidates[:1], (6, 1)), model=model)
    assert gains[0] > 1.5 * gains[1] > 0 and np.all(np.abs(gains[2:]) < 1e-6)


def test_only_rules_that_are_tensors_survive_a_change_of_gauge():
    rng, mean, cov, candidates = world(2, count=40)
    asked = candidates[:3]
    change = rng.normal(size=(4, 4)) * np.array([5.0, 1.0, 0.2, 0.05])  # φ′ = A φ, w′ = A⁻ᵀ w
    inverse = np.linalg.inv(change)
    information = (asked * 0.2).T @ asked
    belief = Belief(mean, np.linalg.inv(cov) + information, information)
    moved = Belief(
        *(
            np.float32(x)
            for x in (inverse.T @ mean, change @ belief[1] @ change.T, change @ belief[2] @ change.T)
        )
    )
    belief = Belief(*map(np.float32, belief))
    for name, same in {"information": True, "d-optimal": True, "pref": False}.items():
        rule = acquisition.RULES[name]
        here = np.asarray(rule(belief, np.float32(candidates), AnswerModel(), None))
        there = np.asarray(rule(moved, np.float32(candidates @ change.T), AnswerModel(), None))
        worst = np.max(np.abs(there - here)) / np.max(np.abs(here))
        assert (worst < 1e-2) == same, (name, worst)
        assert (np.argmax(here) == np.argmax(there)) or not same


def joint_information(mean, cov, candidates, chosen, draws):
    """I(y_1 … y_b; w) by enumeration of all answers over draws of w."""
    coef = np.random.default_rng(0).multivariate_normal(mean, cov, size=draws)
    p = expit(coef @ candidates[list(chosen)].T)
    joint = sum(
        xlogy(q, q)
        for signs in itertools.product((0, 1), repeat=len(chosen))
        for q in [np.prod(np.where(signs, p, 1 - p), axis=1).mean()]
    )
    return -joint - entropy(p).mean(axis=0).sum()


def test_a_batch_is_nearly_the_best_and_not_the_single_best_many_times():
    rng = np.random.default_rng(3)
    # Ten near-copies of the most telling question, and a few others.
    candidates = np.concatenate(
        [[[3.0, 0, 0]] + 0.02 * rng.normal(size=(10, 3)), 1.3 * rng.normal(size=(8, 3))]
    )
    mean, cov = np.zeros(3), np.eye(3)
    posterior = posterior_of(mean, cov)
    value = {
        c: joint_information(mean, cov, candidates, c, 4000) for c in itertools.combinations(range(18), 3)
    }
    best = max(value.values())
    _, single = questions.choose(posterior, candidates)
    top = value[tuple(sorted(np.argsort(-single)[:3].tolist()))]
    for rule in ("information", "d-optimal"):
        chosen, _ = questions.choose_batch(posterior, candidates, 3, rule=rule)
        assert len(set(chosen.tolist())) == 3
        assert value[tuple(sorted(chosen.tolist()))] > 0.93 * best
        assert value[tuple(sorted(chosen.tolist()))] > top + 0.1
    everything, _ = questions.choose_batch(posterior, candidates, 50, allowed=np.arange(18) < 5)
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_predicted_gain_equals_a_simulation_of_the_next_answer():
    rng, mean, cov, pairs = world(4, size=3, count=60)
    mean, question = 0.3 * mean, np.array([1.5, -1, 0.5])
    coef = rng.multivariate_normal(mean, cov, size=200_000)
    likes = expit(coef @ pairs.T)
    yes = expit(coef @ question)
    before = np.maximum(likes.mean(axis=0), 1 - likes.mean(axis=0)).mean()
    after = 0.0
    for weight in (yes, 1 - yes):  # exact beliefs after each answer, by reweighting
        p = weight @ likes / weight.sum()
        after += weight.mean() * np.maximum(p, 1 - p).mean()
    now, gain = questions.predicted_gain(posterior_of(mean, cov), question, pairs)
    assert now == pytest.approx(before, abs=3e-3)
    assert gain == pytest.approx(after - before, abs=0.1 * (after - before) + 1e-3) and after - before > 0.01
    lapsing = questions.predicted_gain(posterior_of(mean, cov), question, pairs, lapse=0.9)[1]
    assert 0 <= lapsing < 0.2 * gain


def test_predicted_gain_falls_as_answers_come():
    _, mean, cov, pairs = world(5, size=3, count=50)
    gains = [
        questions.predicted_gain(posterior_of(mean, cov / shrink), pairs[0], pairs)[1]
        for shrink in (1, 10, 100)
    ]
    assert gains[0] > gains[1] > gains[2] >= -1e-5


def test_pref_needs_what_the_answers_told_and_random_a_key():
    _, mean, cov, candidates = world(6, count=200)
    prior = GroupPrior(np.float32(mean), np.float32(cov))
    told = 30 * np.outer(candidates[0], candidates[0])
    posterior = UserPosterior(np.float32(mean), np.float32(np.linalg.inv(cov) + told), 3)
    _, scores = questions.choose(posterior, candidates, rule="pref", prior=prior)
    matrix = told + 1e-3 * np.eye(4)
    slope = expit(candidates @ mean) * expit(-candidates @ mean)
    expected = slope**2 * np.sum(candidates @ np.linalg.inv(matrix) * candidates, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=0.02, atol=0.02 * expected.max())
    drawn = {
        questions.choose(posterior, candidates, rule="random", key=jax.random.key(k))[0] for k in range(9)
    }
    assert len(drawn) > 5
    with pytest.raises(ValueError, match="key"):
        questions.choose(posterior, candidates, rule="random")
    with pytest.raises(UserError, match="did you mean 'information'"):
        questions.choose(posterior, candidates, rule="informaton")
    with pytest.raises(UserError, match="at least 1"):
        questions.choose_batch(posterior, candidates, 0)


def test_new_parameters_and_answers_compile_nothing():
    _, mean, cov, candidates = world(7, count=100)
    questions.choose(posterior_of(mean, cov), candidates)
    before = questions._scores._cache_size()
    for lapse in (0.01, 0.2):
        questions.choose(posterior_of(mean + lapse, 2 * cov), candidates[:80], lapse=lapse)
    assert questions._scores._cache_size() == before
