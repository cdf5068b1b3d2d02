"""Prompts that completions share: the same scores and gradients as with a prompt of their own for each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.adapters import AdapterSpec
from rlhf.policy import scoring, vocabulary
from rlhf.policy.sampling import left_pad
from tests.rlhf import tiny

PROMPTS = [[1, 4, 5], [1, 9, 3, 7, 8, 12]]
T, G = 4, 3


def make_case(kind: str, conditioner: str, adapter_layers: int | None, num_slots: int = T):
    """Random adapters; six completions of two prompts, each prompt for another person."""
    spec = AdapterSpec(2, 2.0, num_basis=2, basis_rank=2, kind=conditioner, slots=3)
    base = tiny.make_base(tiny.make_config(kind), adapter_layers=adapter_layers)
    policy = tiny.make_policy(base, spec)
    rng = np.random.default_rng(0)
    prompts, starts = left_pad([prompt for prompt in PROMPTS for _ in range(G)], multiple=8)
    tokens = np.concatenate([prompts, rng.integers(3, 30, (len(prompts), num_slots))], axis=1)
    z = np.repeat(rng.normal(size=(len(PROMPTS), 2)), G, axis=0).astype(np.float32)
    return policy, (jnp.asarray(tokens, jnp.int32), jnp.asarray(starts), jnp.asarray(z), num_slots)


def logprobs(policy, rows, lower: bool):
    def total(params):
        known = scoring.with_lower_states(policy.graphdef, params, rows) if lower else rows
        decoder = nnx.merge(policy.graphdef, *params)
        states = scoring.completion_states(decoder, known)
        own = vocabulary.token_scores(decoder, states, known.tokens, known.z[known.group])[0]
        return jnp.sum(own * jnp.arange(1.0, 1.0 + own.size).reshape(own.shape)), own

    (_, own), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(policy.params)
    return own, gradient


def scores(policy, rows):
    """Log-probs alone: no gradient to compile."""
    decoder = nnx.merge(policy.graphdef, *policy.params)
    states = scoring.completion_states(decoder, rows)
    return vocabulary.token_scores(decoder, states, rows.tokens, rows.z[rows.group])[0]


@pytest.mark.parametrize(
    ("kind", "conditioner", "adapter_layers"),
    [("llama", "low_rank", 1), ("gemma3", "prefix", None)],
)
def test_scores_and_gradients_do_not_depend_on_sharing(kind, conditioner, adapter_layers):
    policy, case = make_case(kind, conditioner, adapter_layers)
    alone, shared = scoring.rows_of(*case), scoring.rows_of(*case, group_size=G)
    assert len(alone.prompts) == 6 and len(shared.prompts) == 2
    expected, expected_gradient = logprobs(policy, alone, False)
    found, gradient = logprobs(policy, shared, adapter_layers is not None)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if adapter_layers is None:  # else the lower stage's share is not in the second gradient
        parts = (gradient, expected_gradient)
    else:
        parts = tuple((part.lora, part.conditioner) for part in (gradient, expected_gradient))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(parts[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / largest, b / largest, atol=1e-5), parts[0], parts[1]
    )


def test_some_of_the_completions_keep_their_prompts():
    """With one completion for two prompts the other prompt is left out."""
    policy, case = make_case("llama", "low_rank", 1)
    shared = scoring.rows_of(*case, group_size=G)
    shared = scoring.with_lower_states(policy.graphdef, policy.params, shared)
    expected = scores(policy, shared)
    for order in ([5, 0, 4], [3]):
        part = shared.take(jnp.asarray(order))
        assert len(part.prompts) == min(2, len(order))
        np.testing.assert_allclose(scores(policy, part), expected[jnp.asarray(order)], atol=1e-5)


def test_a_completion_of_one_token_needs_the_prompt_only():
    policy, case = make_case("llama", "low_rank", 1, num_slots=1)
    found, expected = (scores(policy, scoring.rows_of(*case, group_size=size)) for size in (G, 1))
    assert found.shape == (6, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
