"""Rollouts: log-probs against plain forward passes of unpadded rows, the reference, people, keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.adapters import AdapterSpec
from rlhf.policy import vocabulary
from rlhf.policy.conditioning import UserShares
from rlhf.policy.logprobs import structure
from rlhf.train.rl import rollout as rollouts
from rlhf.train.rl.update import draw
from tests.rlhf import tiny
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup

PROMPTS = [[1, 4, 5], [1, 9, 3, 7, 8, 12]]
T = 4


def make_rollout(kind: str = "llama", adapter_layers: int | None = 1):
    """Random adapters, so policy and reference differ; token 2 is the stop token, and 7 too, to see some ends."""
    base = tiny.make_base(tiny.make_config(kind), adapter_layers=adapter_layers)
    task = setup.make_task(
        prompts=PROMPTS, people=steps.make_population(), groups=4, base=base, scale=0.15, max_new_tokens=T
    )
    task = task._replace(stop=jnp.arange(2, 12))
    return task, draw(task.state, *task.arguments(), program=task.program)


def plain_logprobs(graphdef, params, rollout, row: int, z) -> np.ndarray:
    """Log-probs of one row's completion from its unpadded tokens: causal mask, no cache, no stages."""
    start, length = int(rollout.starts[row]), int(rollout.mask[row].sum())
    width = rollout.tokens.shape[1] - T
    tokens = np.asarray(rollout.tokens)[row, start : width + length]
    # Padded on the right to one length, where a causal mask makes it invisible.
    padded = np.pad(tokens, (0, rollout.tokens.shape[1] - len(tokens)))[None]
    logits = tiny.causal_logits(graphdef, params, jnp.asarray(padded), z)
    logprobs = np.asarray(jax.nn.log_softmax(logits[0]))
    return np.array([logprobs[i - 1, tokens[i]] for i in range(width - start, len(tokens))])


@pytest.mark.parametrize(("kind", "adapter_layers"), [("llama", 1), ("gemma3", None)])
def test_logprobs_equal_the_samplers_and_a_plain_forward_pass(kind, adapter_layers):
    task, rollout = make_rollout(kind, adapter_layers)
    lengths = np.asarray(rollout.mask.sum(axis=1))
    assert 1 <= lengths.min() < T <= lengths.max(), "the case must hold short and full rows"
    np.testing.assert_allclose(rollout.sampler_logprobs, rollout.logprobs, atol=1e-4)
    assert (rollout.rows.hidden is None) == (adapter_layers is None)
    params = task.frozen._replace(**task.state.params)
    base = tiny.make_base(tiny.make_config(kind), adapter_layers=adapter_layers)
    bare = structure(base.config, base.stages, None, "float32", False)[0]
    empty = nnx.State({})
    for row in (0, 5, 10, 15):
        length = lengths[row]
        own = plain_logprobs(task.program.graphdef, params, rollout, row, rollout.z[row][None])
        np.testing.assert_allclose(rollout.logprobs[row, :length], own, atol=1e-4)
        base_only = type(params)(task.frozen.base, empty, empty)
        reference = plain_logprobs(bare, base_only, rollout, row, None)
        np.testing.assert_allclose(rollout.ref_logprobs[row, :length], reference, atol=1e-4)
        assert np.abs(own - reference).max() > 1e-3
        assert not np.asarray(rollout.logprobs)[row, length:].any()
        ended = int(rollout.completions[row, length - 1]) in range(2, 12)
        assert bool(rollout.ended[row]) == ended and (ended or length == T)


def test_rows_and_iterations_draw_from_their_own_keys():
    task, rollout = make_rollout()
    task = task._replace(stop=jnp.array([-1]))  # nothing ends, so that rows may be compared whole
    population = task.people._replace(  # one person who is nobody in particular, so only the keys differ
        user_mean=jnp.zeros_like(task.people.user_mean) + task.people.conditioning.mean,
        user_scale=jnp.zeros_like(task.people.user_scale),
    )
    task = task._replace(people=population)

    def completions(iteration):
        state = task.state._replace(iteration=jnp.int32(iteration))
        return np.asarray(draw(state, *task.arguments(), program=task.program).completions)

    first, second = completions(0), completions(1)
    for group in range(0, 16, 4):  # rows of a group share prompt and person; 32⁴ answers hardly repeat
        assert len({tuple(row) for row in first[group : group + 4]}) > 1
    assert (first != second).any(axis=1).all()
    np.testing.assert_array_equal(completions(0), first)
    keys = jax.random.key_data(
        jnp.stack([k for n in range(50) for k in rollouts.iteration_keys(task.state.key, jnp.int32(n))])
    )
    assert len({tuple(row) for row in np.asarray(keys)}) == 150


def test_people_are_drawn_a_group_and_shuffled_over_groups():
    population = steps.make_population(spread=False)
    shares = UserShares(0.5, 0, 0, 0.5)

    def generic_groups(seed):
        coef, z = rollouts.user_rows(jax.random.key(seed), population, shares, 8, 3, 0.5, 0.5)
        assert coef.shape == z.shape == (24, 2)
        groups = np.asarray(coef).reshape(8, 3, 2)
        np.testing.assert_array_equal(groups, np.repeat(groups[:, :1], 3, axis=1))
        # w_eff lies half-way between the person and the mean, and z = 0 exactly for the mean.
        people = {tuple(np.float32(0.5 * (w + population.conditioning.mean))) for w in population.user_mean}
        generic = ~np.asarray(z).reshape(8, 3, 2)[:, 0].any(axis=1)
        assert generic.sum() == 4
        for group in groups[~generic, 0]:
            assert min(np.abs(group - np.array(person)).max() for person in people) < 1e-5
        return tuple(np.flatnonzero(generic))

    assert len({generic_groups(seed) for seed in range(5)}) > 1


def test_chunks_of_the_vocabulary_change_neither_values_nor_gradients(monkeypatch):
    base = tiny.make_base(tiny.make_config())
    policy = tiny.make_policy(base, AdapterSpec(2, 2.0))
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(3, 5, 16)), jnp.float32)
    taken = jnp.asarray(rng.integers(0, 32, (3, 5)))

    def both(params, states):
        logprobs, entropy = vocabulary.token_scores(nnx.merge(policy.graphdef, *params), states, taken, None)
        return jnp.sum(logprobs * np.arange(5)) + jnp.sum(entropy**2), (logprobs, entropy)

    whole = jax.value_and_grad(both, argnums=(0, 1), has_aux=True)(policy.params, states)
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES", 3 * 32 * 4 * 2)  # two slots at a time: 2 + 2 + 1
    parts = jax.value_and_grad(both, argnums=(0, 1), has_aux=True)(policy.params, states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, parts)
    probs = jax.nn.softmax(nnx.merge(policy.graphdef, *policy.params).logits(states))
    np.testing.assert_allclose(whole[0][1][1], -(probs * jnp.log(probs)).sum(-1), atol=1e-5)
