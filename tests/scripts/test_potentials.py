"""Curiosity: beliefs against a fine grid, potentials against simulation, telescoping, and that shaping keeps the best policy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.people.acquisition import AnswerModel
from scripts.experiments import potentials as curiosity

MEAN = np.array([0.3, -0.2], np.float32)
COV = np.array([[1.0, 0.4], [0.4, 0.7]], np.float32)
BELIEF = Belief.from_cov(jnp.asarray(MEAN), jnp.asarray(COV))
QUESTION = np.array([1.5, -1.0], np.float32)
PLAIN, LEADING = AnswerModel(0.9, 0.1, 0.0, 0.0), AnswerModel(0.05, 0.0, 0.95, 4.0)


def likelihood(margin, model: AnswerModel):
    genuine, coin, framed, pull = model
    return genuine / (1 + np.exp(-margin)) + coin / 2 + framed / (1 + np.exp(-pull))


@pytest.mark.parametrize("model", [PLAIN, LEADING, AnswerModel(0.5, 0.1, 0.4, -2.0)])
@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_one_answer_gives_the_moments_of_the_exact_posterior(model, answer):
    axis = np.linspace(-7, 7, 601)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    p = likelihood(grid @ QUESTION, model)
    weight = multivariate_normal(MEAN, COV).pdf(grid) * (p if answer else 1 - p)
    weight /= weight.sum()
    mean = weight @ grid
    cov = (grid - mean).T @ ((grid - mean) * weight[:, None])
    found = curiosity.learn(BELIEF, QUESTION, answer, model)
    np.testing.assert_allclose(found.mean, mean, atol=2e-4)
    np.testing.assert_allclose(found.cov, cov, atol=2e-4)


def test_many_genuine_answers_agree_with_the_laplace_posterior():
    rng = np.random.default_rng(0)
    questions = rng.normal(size=(40, 2)).astype(np.float32)
    answers = (rng.random(40) < 1 / (1 + np.exp(-questions @ [1.0, -0.8]))).astype(np.float32)
    belief = BELIEF
    for question, answer in zip(questions, answers, strict=True):
        belief = curiosity.learn(belief, question, answer, AnswerModel(1.0, 0.0, 0.0, 0.0))
    laplace = users.posterior(Belief.from_cov(MEAN, COV), questions, answers)
    sd = np.sqrt(np.diag(np.linalg.inv(laplace.precision)))
    assert np.all(np.abs(belief.mean - laplace.mean) < 0.35 * sd)
    np.testing.assert_allclose(np.sqrt(np.diag(belief.cov)), sd, rtol=0.15)


def test_log_accuracy_and_restriction_equal_scipy():
    coef = np.array([[0.5, 1.0], [-1.0, 0.2]], np.float32)
    wide = Belief.from_cov(jnp.tile(BELIEF.mean, (2, 1)), jnp.tile(BELIEF.cov, (2, 1, 1)))
    np.testing.assert_allclose(
        curiosity.log_accuracy(wide, coef), multivariate_normal(MEAN, COV).logpdf(coef), rtol=1e-5
    )
    only = jnp.asarray([[0.6, 0.8]])
    marginal = multivariate_normal(MEAN @ [0.6, 0.8], np.array([0.6, 0.8]) @ COV @ [0.6, 0.8])
    found = curiosity.log_accuracy(curiosity.restrict(wide, only), coef @ only.T)
    np.testing.assert_allclose(found, marginal.logpdf(coef @ [0.6, 0.8]), rtol=1e-5)


def test_a_question_off_the_allowed_directions_is_worth_nothing():
    """Coefficients that are independent: learning about the second pays nothing where only the first may be learned."""
    belief = Belief.from_cov(jnp.zeros(2), jnp.eye(2))
    after = curiosity.learn(belief, jnp.asarray([0.0, 2.0]), 1.0, PLAIN)
    allowed, coef = jnp.asarray([[1.0, 0.0]]), jnp.asarray([0.4])
    before, later = (curiosity.log_accuracy(curiosity.restrict(b, allowed), coef) for b in (belief, after))
    np.testing.assert_allclose(before, later, atol=1e-6)
    assert float(curiosity.log_accuracy(after, jnp.asarray([0.4, 1.0]))) != pytest.approx(
        float(curiosity.log_accuracy(belief, jnp.asarray([0.4, 1.0])))
    )


def test_expected_regret_equals_simulation_and_shrinks_with_what_is_known():
    pairs = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    draws = np.random.default_rng(2).multivariate_normal(MEAN, COV, size=400_000) @ pairs.T
    chosen = draws * ((MEAN @ pairs.T) > 0)
    simulated = np.mean(chosen - np.maximum(draws, 0.0))
    np.testing.assert_allclose(curiosity.expected_regret(BELIEF, pairs), simulated, rtol=0.02)
    surer = curiosity.expected_regret(Belief.from_cov(BELIEF.mean, 0.25 * BELIEF.cov), pairs)
    assert float(curiosity.expected_regret(BELIEF, pairs)) < float(surer) < 0.0


def test_turn_rewards_telescope_exactly_and_end_with_the_dialogue():
    potentials = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32))
    turns, gamma = jnp.asarray([5, 3, 1, 0]), 0.9
    powers = gamma ** np.arange(5)
    closed = curiosity.turn_rewards(potentials, gamma, turns, closed=True)
    np.testing.assert_allclose(closed @ powers, np.where(turns > 0, -potentials[:, 0], 0.0), atol=1e-6)
    open_ended = curiosity.turn_rewards(potentials, gamma, turns, closed=False)
    last = np.take_along_axis(np.asarray(potentials), np.asarray(turns)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(
        open_ended @ powers, gamma ** np.asarray(turns) * last - potentials[:, 0], atol=1e-6
    )
    assert not np.any(closed[1, 3:]) and not np.any(open_ended[3])


def returns_of_every_policy(gamma: float, shaped: bool) -> np.ndarray:
    """Expected return of all 3^3 policies that ask one of three questions, see the answer, and ask again.

    Two possible people, answers from the genuine model; at the end the person is served by the belief's mean. Plain
    enumeration over people and answers.
    """
    questions = np.array([[1.5, 0.0], [0.0, 1.5], [1.0, 1.0]], np.float32)
    people, served = np.array([[1.2, -0.4], [-0.5, 0.9]], np.float32), np.array([1.0, -1.0], np.float32)
    potential = lambda belief, coef: float(curiosity.log_accuracy(belief, coef))  # noqa: E731
    after = {}
    for history in itertools.chain([()], *(itertools.product(range(3), (0, 1), repeat=n) for n in (1, 2))):
        belief = BELIEF
        for question, answer in zip(history[::2], history[1::2], strict=True):
            belief = curiosity.learn(belief, questions[question], float(answer), PLAIN)
        after[history] = belief
    values = []
    for first, if_no, if_yes in itertools.product(range(3), repeat=3):
        total = 0.0
        for coef in people:
            for one, two in itertools.product((0, 1), repeat=2):
                second = if_yes if one else if_no
                chance = 0.5
                for question, answer in ((first, one), (second, two)):
                    p = likelihood(float(questions[question] @ coef), PLAIN)
                    chance *= p if answer else 1 - p
                path = [(), (first, one), (first, one, second, two)]
                gain = float(coef @ served) * (1 if float(after[path[2]].mean @ served) > 0 else -1)
                rewards = np.array([0.0, gain])
                if shaped:
                    phi = jnp.asarray([potential(after[h], coef) for h in path], jnp.float32)
                    rewards = rewards + np.asarray(curiosity.turn_rewards(phi, gamma, 2, closed=True))
                total += chance * float(rewards @ [1.0, gamma])
        values.append(total)
    return np.array(values)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_shaping_adds_the_same_constant_to_every_policy(gamma):
    plain, shaped = (returns_of_every_policy(gamma, flag) for flag in (False, True))
    assert np.ptp(plain) > 0.05, "policies must differ"
    constant = -np.mean(
        [curiosity.log_accuracy(BELIEF, np.array(c, np.float32)) for c in ([1.2, -0.4], [-0.5, 0.9])]
    )
    np.testing.assert_allclose(shaped - plain, constant, atol=1e-5)
    # Policies tie exactly, so rounding may name another of the best.
    assert plain[np.argmax(shaped)] > plain.max() - 1e-5


def test_turn_rewards_stand_at_the_last_token_of_their_turn():
    turn = jnp.asarray([[0, 0, 1, 1, 1, 2], [0, 1, 1, 3, 3, 3]])
    mask = jnp.asarray([[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0]], bool)
    rewards = jnp.asarray([[0.7, -1.9, 0.3, 5.0], [0.1, 0.2, 9.0, -0.4]])
    expected = [[0, 0.7, 0, -1.9, 0, 0.3], [0.1, 0, 0.2, -0.4, 0, 0]]
    np.testing.assert_allclose(curiosity.at_turn_ends(rewards, turn, mask), expected)


def test_answers_to_leading_questions_move_an_informed_belief_little():
    informed = curiosity.learn(BELIEF, QUESTION, 1.0, LEADING)
    naive = curiosity.learn(BELIEF, QUESTION, 1.0, PLAIN)
    moved = [float(jnp.linalg.norm(b.mean - BELIEF.mean)) for b in (informed, naive)]
    assert moved[0] < 0.1 * moved[1]
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.all(jnp.isfinite(leaf))), informed))
