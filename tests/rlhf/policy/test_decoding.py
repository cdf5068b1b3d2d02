"""Decoding token by token: layers apart, rows that leave between two steps, and the program that XLA makes of the loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.adapters import AdapterSpec
from rlhf.policy import decoding
from rlhf.policy.sampling import SamplingSettings, generate, left_pad, row_keys
from tests.rlhf import tiny
from tests.rlhf.programs import Program

SPEC = AdapterSpec(lora_rank=2, lora_alpha=2.0, num_basis=2, basis_rank=2)
PROMPTS = [[1, 5, 6, 7, 9, 11, 13], [1, 9], [4], [1, 20, 21, 22, 5]]
TEXTS = np.random.default_rng(1).integers(3, 30, (4, 5)).astype(np.int32)
Z = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)


def wanted(policy, rows, length):
    """Logits after `length` tokens of each row's text, without cache or padding on the left."""
    both = [[*PROMPTS[row], *TEXTS[row, :length]] for row in rows]
    tokens = np.zeros((len(both), 16), np.int32)
    for i, text in enumerate(both):
        tokens[i, : len(text)] = text
    logits = tiny.causal_logits(policy.graphdef, policy.params, tokens, Z[np.array(rows)])
    return np.asarray(logits)[np.arange(len(both)), [len(text) - 1 for text in both]]


@pytest.mark.parametrize("kind, adapter_layers", [("llama", None), ("gemma3", 2)])
def test_rows_may_leave_between_two_steps(kind, adapter_layers):
    policy = tiny.make_policy(tiny.make_base(tiny.make_config(kind), adapter_layers=adapter_layers), SPEC)
    graphdef, params = decoding.apart(policy.graphdef, policy.params)
    assert decoding.apart(graphdef, params) == (graphdef, params)
    decoder = nnx.merge(graphdef, *params)
    prompts, starts = left_pad(PROMPTS, multiple=8)
    logits, state = jax.jit(lambda *a: decoding.prefill(decoder, *a, 5))(prompts, starts, Z)
    np.testing.assert_allclose(logits, wanted(policy, range(4), 0), atol=1e-4)
    step, rows = jax.jit(lambda *a: decoding.step(decoder, *a)), [0, 1, 2, 3]
    for length in range(1, 5):
        logits, state = step(state, TEXTS[np.array(rows), length - 1])
        np.testing.assert_allclose(logits, wanted(policy, rows, length), atol=1e-4)
        if length == 2:
            rows = [3, 1]
            state = state.take(jnp.array(rows))


def lowered(kind: str, spec: AdapterSpec | None, **settings):
    """Decoding of two rows with a model whose weights are the largest arrays by far."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    base = tiny.make_base(tiny.make_config(kind, **shape))
    policy = tiny.make_policy(base, spec)
    tokens, starts = left_pad(PROMPTS[:2], multiple=8)
    z = Z[:2] if spec else None
    arguments = (row_keys(0, np.arange(2)), SamplingSettings.of(2, **settings), np.array([-1], np.int32))
    static = {"graphdef": policy.graphdef, "max_new_tokens": 8, "filtered": bool(settings)}
    return generate.lower(policy.params, tokens, starts, z, *arguments, **static), base


@pytest.mark.parametrize(
    "kind, spec",
    [("llama", None), ("llama", SPEC), ("gemma2", dataclasses.replace(SPEC, kind="prefix", slots=2))],
)
def test_the_loop_writes_no_weights_and_keeps_its_cache_in_place(kind, spec):
    program, base = lowered(kind, spec)
    program = Program(program)
    smallest = min(leaf[0].size for leaf in jax.tree.leaves(base.tree["stages"]) if leaf.ndim == 3)
    looped = list(program.looped())
    assert len(looped) > 50, "no loop found"
    assert not [one for one in looped if one.size >= smallest]
    cache = {(2, 2, 16, 16)}
    changed = [one for one in looped if cache & set(one.shapes)]
    assert len(changed) == 2 * base.config.num_layers, "one write of keys and one of values a layer"
    assert all("dynamic-update-slice" in one.name for one in changed), changed
    assert not program.host_transfers()
