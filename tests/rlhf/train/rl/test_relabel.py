"""Relabelling: weights and advantages by hand, expectations under another person's policy, nothing new for oneself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.policy.conditioning import UserShares
from rlhf.train.rl import relabel
from rlhf.train.rl.rollout import user_rows
from rlhf.train.rl.update import draw, update
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup

G = 4


def make_task(algorithm=None, **changes):
    given = dict(prompts=[[1, 4, 5], [1, 9, 3]], people=steps.make_population(), groups=2, group_size=G)
    return setup.make_task(
        **(given | dict(scale=0.3) | changes), algorithm={"relabel": 1} | (algorithm or {})
    )


def others_of(task, rollout):
    params = task.frozen._replace(**task.state.params)
    key = jax.random.fold_in(task.state.key, task.state.iteration)
    return jax.jit(relabel.for_others, static_argnums=5)(
        rollout, params, task.people, key, task.settings, task.program
    )


def test_each_group_goes_to_another_person_and_keeps_its_tokens():
    task = make_task({"relabel": 2}, shares=UserShares(1, 1, 0, 0))
    rollout = draw(task.state, *task.arguments(), program=task.program)
    others = others_of(task, rollout)
    assert others.coef.shape == (16, 2)
    np.testing.assert_array_equal(others.tokens, np.tile(rollout.tokens, (2, 1)))
    people = np.asarray(others.coef).reshape(4, G, 2)
    np.testing.assert_array_equal(people, np.broadcast_to(people[:, :1], people.shape))
    own = np.asarray(rollout.coef)[::G]
    assert len(np.unique(np.concatenate([people[:, 0], own]), axis=0)) == 6
    assert np.abs(np.asarray(others.logprobs[:8] - rollout.logprobs)).max() > 1e-3
    np.testing.assert_array_equal(others.ref_logprobs[8:], rollout.ref_logprobs)


def test_weights_turn_one_persons_completions_into_the_others():
    """E_u[ρ 1(y = k)] = π_v(k) for one-token completions, without truncation."""
    task = make_task(group_size=512, groups=1, max_new_tokens=1, scale=0.15)
    rollout = draw(task.state, *task.arguments(), program=task.program)
    others = others_of(task, rollout)
    weight = np.asarray(relabel.importance(rollout, others, jnp.inf), np.float64)
    token = np.asarray(rollout.completions)[:, 0]
    own, other = (np.exp(np.asarray(r.logprobs, np.float64)[:, 0]) for r in (rollout, others))
    assert np.abs(weight - 1).max() > 0.05
    np.testing.assert_allclose(weight, other / own, rtol=1e-4)
    for k in np.unique(token):
        error = np.sqrt(np.mean(weight**2 * (token == k)) / 512)
        assert abs(np.mean(weight * (token == k)) - other[token == k][0]) < 4 * error + 1e-3
    capped = np.asarray(relabel.importance(rollout, others, jnp.float32(1.0)))
    np.testing.assert_allclose(capped, np.minimum(weight, 1.0), rtol=1e-4)


def test_advantages_by_hand():
    task = make_task({"kind": "rloo", "missing_eos_penalty": 0.7})
    rollout = setup.made_up_rollout(task)
    others = rollout._replace(coef=rollout.coef + 0.5)
    rng, beta, penalty = np.random.default_rng(3), 0.2, 0.7
    rewards, weight = rng.normal(size=(8, 2)).astype(np.float32), rng.uniform(0.01, 1.0, 8)
    found = relabel.advantages(
        others, jnp.asarray(rewards), jnp.asarray(weight), jnp.float32(beta), task.settings
    )
    kl = np.sum(np.asarray(others.logprobs - others.ref_logprobs), axis=1)
    total = (rewards * np.asarray(others.coef)).sum(axis=1) - beta * kl - penalty * ~np.asarray(others.ended)
    for row in range(8):
        group = range(row // G * G, row // G * G + G)
        mean = sum(weight[j] * total[j] for j in group) / sum(weight[j] for j in group)
        assert found[row] == pytest.approx(G / (G - 1) * weight[row] * (total[row] - mean), abs=1e-4)
    # Weights of one: the estimator itself, with G completions of one's own.
    plain = relabel.advantages(others, jnp.asarray(rewards), jnp.ones(8), jnp.float32(beta), task.settings)
    leave_one_out = [total[i] - np.mean([total[j] for j in range(4) if j != i]) for i in range(4)]
    np.testing.assert_allclose(plain[:4], leave_one_out, atol=1e-4)


def liked(rollout):
    return jnp.stack([(rollout.completions == 5).sum(axis=1), rollout.mask.sum(axis=1)], axis=1) * 1.0


def test_oneself_as_another_person_is_nothing_new():
    """Where everybody is the same person, relabelled rows repeat the others: the same update, weights of 1."""
    population = steps.make_population()
    same = population._replace(
        user_mean=jnp.zeros_like(population.user_mean) + population.conditioning.mean,
        user_scale=jnp.zeros_like(population.user_scale),
    )
    results = []
    for times in (0, 1):
        task = make_task(people=same, algorithm={"relabel": times}, shares=UserShares(1, 0, 0, 0))
        rollout = setup.made_up_rollout(task)
        state, metrics = update(
            task.state,
            rollout,
            liked(rollout),
            task.frozen,
            task.settings,
            program=task.program,
            people=task.people,
        )
        results.append((state.params, metrics))
    assert float(results[1][1]["train/relabel_weight"]) == pytest.approx(1.0, abs=1e-4)
    assert float(results[1][1]["train/relabel_effective_share"]) == pytest.approx(1.0, abs=1e-4)
    start = jax.tree.leaves(make_task(people=same).state.params)
    one, two = (jax.tree.leaves(params) for params, _ in results)
    moved = max(float(jnp.abs(a - b).max()) for a, b in zip(start, one, strict=True))
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(one, two, strict=True))
    assert moved > 1e-3 and apart < 0.02 * moved


def test_the_people_are_drawn_with_a_key_of_their_own():
    task = make_task(groups=8)
    rollout = setup.made_up_rollout(task)
    others = others_of(task, rollout)
    key = jax.random.fold_in(task.state.key, task.state.iteration)
    for again in (*jax.random.split(key, 3),):
        coef, _ = user_rows(again, task.people, task.program.shares, 8, G, 0.1, 0.0)
        assert not np.array_equal(np.asarray(coef), np.asarray(others.coef))


@pytest.mark.parametrize(
    "changes", [{"algorithm": {"kind": "grpo"}}, {"kl": {"place": "loss", "estimator": "k2"}}]
)
def test_estimators_without_weights_are_refused(changes):
    with pytest.raises(ValueError, match="relabel"):
        make_task(**changes)
