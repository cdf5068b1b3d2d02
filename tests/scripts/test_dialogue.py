"""Dialogues with simulated people: what is asked, what leading does to a belief, and that PPO finds what is paid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards.basis.belief import Belief
from rewards.people.acquisition import AnswerModel
from rlhf.run.record import traced
from rlhf.train import optim
from scripts.experiments import dialogue, dialogue_ppo
from scripts.experiments import potentials as curiosity
from scripts.experiments.dialogue import DialogueProgram, World
from scripts.experiments.dialogue_ppo import DialogueNumbers

K = 3


def make_world(pool, *, informed: bool = True) -> World:
    ways = np.array([[0.9, 0.1, 0.0, 0.0], [0.05, 0.0, 0.95, 4.0]], np.float32)
    actual = AnswerModel(*jnp.asarray(ways.T))
    assumed = actual if informed else AnswerModel(*jnp.asarray(ways[[0, 0]].T))
    rng = np.random.default_rng(0)
    people, pairs = (rng.normal(size=(n, K)).astype(np.float32) for n in (40, 30))
    prior = Belief.from_cov(jnp.zeros(K), jnp.eye(K))
    return World(prior, jnp.asarray(pool), jnp.asarray(pairs), jnp.asarray(people), actual, assumed)


def log_accuracy(beliefs, coef, pairs):
    return curiosity.log_accuracy(beliefs, coef)


def neutral(params, offer, key):
    return jnp.zeros(len(offer.questions), jnp.int32)


def leading(params, offer, key):
    return jnp.ones(len(offer.questions), jnp.int32)


def test_no_pair_is_asked_twice_and_beliefs_follow_the_questions():
    """Four pairs, one axis each (the fourth says nothing): after t turns as many axes are known as pairs of them asked."""
    pool = np.concatenate([2.0 * np.eye(K), np.zeros((1, K))]).astype(np.float32)
    static = DialogueProgram(50, 4, 1, None, False)
    talks = dialogue.converse({}, make_world(pool), jax.random.key(0), static=static, chooser=neutral)
    known = np.sum(np.asarray(talks.state)[:, :, :K] < 0.999, axis=2)
    assert np.all(np.diff(known, axis=1) <= 1) and np.all(known[:, 3] >= 2)
    spread = np.asarray(talks.state)[:, 3, :K]
    once = float(
        jnp.sqrt(
            curiosity.learn(
                Belief.from_cov(jnp.zeros(K), jnp.eye(K)), pool[0], 1.0, AnswerModel(0.9, 0.1, 0.0, 0.0)
            ).cov[0, 0]
        )
    )
    assert np.all(np.isclose(spread, 1.0, atol=1e-5) | np.isclose(spread, once, atol=1e-5))
    np.testing.assert_allclose(talks.entropy[:, 0], 1.5 * (1 + np.log(2 * np.pi)), rtol=1e-5)


def test_leading_makes_a_naive_belief_sure_and_wrong_and_an_informed_one_unmoved():
    pool = np.random.default_rng(1).normal(size=(40, K)).astype(np.float32) * 1.5
    static = DialogueProgram(400, 10, 4, None, False)
    found = {}
    for informed in (False, True):
        for chooser in (neutral, leading):
            world = make_world(pool, informed=informed)
            talks = dialogue.converse({}, world, jax.random.key(2), static=static, chooser=chooser)
            found[informed, chooser.__name__] = {k: float(v) for k, v in dialogue.summary(talks).items()}
    misled, unmoved = found[False, "leading"], found[True, "leading"]
    assert (
        misled["entropy_drop"] > 1.0 and misled["log_accuracy_gain"] < -0.5 and misled["leading_share"] == 1.0
    )
    assert abs(unmoved["log_accuracy_gain"]) < 0.3 and unmoved["entropy_drop"] < 0.3
    for informed in (False, True):
        assert found[informed, "neutral"]["log_accuracy_gain"] > 1.0
        assert found[informed, "neutral"]["accuracy"] > found[informed, "leading"]["accuracy"] + 0.1


@pytest.mark.parametrize("closed", [False, True])
def test_channels_telescope_and_the_outcome_comes_last(closed):
    pool = np.random.default_rng(1).normal(size=(12, K)).astype(np.float32)
    static = DialogueProgram(20, 5, 3, log_accuracy, closed)
    params = dialogue_ppo.init_params(jax.random.key(0), K)
    talks = dialogue.converse(params, make_world(pool), jax.random.key(3), static=static)
    channels = np.asarray(
        dialogue_ppo.reward_channels(talks, DialogueNumbers.of(curious=1.0, outcome=1.0), static)
    )
    np.testing.assert_allclose(talks.potentials, talks.log_accuracy, atol=1e-5)
    end = 0.0 if closed else talks.potentials[:, -1]
    np.testing.assert_allclose(channels[..., 0].sum(axis=1), end - talks.potentials[:, 0], atol=1e-4)
    np.testing.assert_array_equal(channels[:, :-1, 1], 0.0)
    np.testing.assert_allclose(channels[:, -1, 1], -talks.regret)


def test_ppo_learns_to_ask_what_tells_and_never_compiles_twice():
    """Half of the pairs are nearly the same text twice and tell nothing; asking must move to the other half."""
    rng = np.random.default_rng(4)
    pool = rng.normal(size=(40, K)).astype(np.float32) * np.where(np.arange(40) < 20, 2.0, 0.05)[:, None]
    world = make_world(pool.astype(np.float32))
    static = DialogueProgram(64, 6, 4, log_accuracy, False)
    rates = traced(optim.OptimizerConfig(learning_rate=0.03, schedule="constant", beta2=0.99, eps=1e-6))
    state = optim.init_state(dialogue_ppo.init_params(jax.random.key(0), K), rates, jax.random.key(1))
    gains = []
    before = dialogue_ppo.iterate._cache_size()
    for step in range(40):
        hyper = (rates, DialogueNumbers.of(curious=1.0, outcome=0.0, entropy_coef=0.01 if step else 0.02))
        state, metrics = dialogue_ppo.iterate(state, world, hyper, static=static)
        gains.append((float(metrics["log_accuracy_gain"]), float(metrics["leading_share"])))
    assert dialogue_ppo.iterate._cache_size() == before + 1
    start, end = np.mean(gains[:5], axis=0), np.mean(gains[-10:], axis=0)
    assert end[0] > start[0] + 0.5, gains
    assert 0.4 < gains[0][1] < 0.6 and end[1] < 0.25
    assert int(state.step) == 40
