import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.objectives import rails

BETA = 0.7


def enumerated():
    """Prompts whose G completions are all there are, π₀ uniform; agreement pays on about half of them."""
    rng = np.random.default_rng(0)
    behaves = rng.random((40, 24)) < 0.4
    return rng.normal(size=(40, 24)) + behaves * rng.normal(size=(40, 1)), behaves


def optimum(reward):
    return np.asarray(jax.nn.softmax(jnp.asarray(reward) / BETA, axis=-1))


def test_the_optimum_behaves_no_more_than_the_reference():
    reward, behaves = enumerated()
    price = np.asarray(rails.exact_penalty(jnp.asarray(reward), jnp.asarray(behaves), BETA))
    base = behaves.mean(axis=1)
    before = (optimum(reward) * behaves).sum(axis=1)
    after = (optimum(reward - price[:, None] * behaves) * behaves).sum(axis=1)
    acts = price > 0
    assert 10 < acts.sum() < 35 and (before[acts] > base[acts]).all()
    np.testing.assert_allclose(after[acts], base[acts], atol=1e-5)
    assert (after[~acts] <= base[~acts] + 1e-6).all()
    # The least such penalty: a little less lets the behaviour grow.
    less = (optimum(reward - 0.95 * price[:, None] * behaves) * behaves).sum(axis=1)
    assert (less[acts] > base[acts]).all()


def test_nothing_is_charged_where_nothing_can_be_compared():
    reward = jnp.array([[1.0, 9.0], [3.0, 4.0]])
    price = rails.exact_penalty(reward, jnp.array([[True, True], [False, False]]), BETA)
    np.testing.assert_array_equal(price, 0)
    gradient = jax.grad(
        lambda r: rails.exact_penalty(r, jnp.array([[True, True], [True, False]]), BETA).sum()
    )(reward)
    assert np.isfinite(gradient).all()


def test_dual_ascent_finds_the_same_price():
    reward, behaves = enumerated()
    wanted = np.asarray(rails.exact_penalty(jnp.asarray(reward), jnp.asarray(behaves), BETA))
    price = np.zeros(40)
    for _ in range(600):
        measured = (optimum(reward - price[:, None] * behaves) * behaves).sum(axis=1)
        price = np.asarray(
            rails.dual_ascent(jnp.asarray(price), jnp.asarray(measured), behaves.mean(axis=1), 1.0)
        )
    np.testing.assert_allclose(price, wanted, atol=1e-3)


def test_worst_group_weights_reach_the_saddle_point():
    """Two groups and a choice between them: at the max-min both get the same, 10:1 numbers or not."""
    pay, q, mix = np.array([[1.0, 0.0], [0.0, 0.5]]), jnp.array([10 / 11, 1 / 11]), []
    move = jax.jit(rails.worst_group_weights)
    for _ in range(1500):
        action = np.exp(20.0 * np.asarray(q) @ pay)
        action /= action.sum()
        mix.append(action)
        q = move(q, jnp.asarray(pay @ action), 0.05)
    got = pay @ np.mean(mix[500:], axis=0)
    np.testing.assert_allclose(got, 1 / 3, atol=0.02)  # max_p min(p, (1 − p)/2)
    assert float(q.sum()) == pytest.approx(1.0)


def test_a_hacker_of_the_reward_gets_nothing():
    reward = jnp.array([[9.0, 1.0, 2.0], [9.0, 8.0, 7.0]])
    passes = jnp.array([[False, True, True], [False, False, False]])
    given, learned = rails.gated(reward, passes, 0.0)
    np.testing.assert_array_equal(given[0], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(learned, [True, False])
    advantage = (given - given.mean(axis=1, keepdims=True)) * learned[:, None]
    assert advantage[0, 0] < 0 and (advantage[1] == 0).all()
