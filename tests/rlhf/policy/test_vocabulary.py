"""Chunks of slots: the same values and gradients as the whole, and memory that does not grow with B·T·V."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlhf.models.adapters import AdapterSpec
from rlhf.policy import vocabulary
from rlhf.policy.logprobs import sequence_logprobs, token_logprobs
from rlhf.policy.packing import Sequences, pack
from tests.rlhf import tiny

Z = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
ROWS = [[Sequences((1, 5 + r), ((8, 9, 10 + r, 2), (8, 9, 3, 2), (8, 2), (r + 3, 2)))] for r in range(4)]


def make(**spec):
    return tiny.make_policy(tiny.make_base(tiny.make_config("gemma2")), AdapterSpec(2, 2.0, 3, 2, **spec))


@pytest.mark.parametrize("slots", [1, 2, 4, 7])
@pytest.mark.parametrize("spec", [{}, {"kind": "logits"}], ids=str)
def test_trees_in_chunks_equal_the_whole(monkeypatch, slots, spec):
    policy, rows = make(**spec), pack(ROWS)
    vocab = policy.base.config.vocab_size

    def both(lora):
        params = policy.params._replace(lora=lora)
        logprobs, entropy = token_logprobs(policy.graphdef, params, rows, Z)
        weight = jnp.sin(jnp.arange(logprobs.size)).reshape(logprobs.shape) * rows.member.any(axis=1)
        return jnp.sum(weight * logprobs) + jnp.sum(entropy**2), (logprobs, entropy)

    whole = jax.value_and_grad(both, has_aux=True)(policy.params.lora)
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES", 4 * len(ROWS) * vocab * slots)
    parts = jax.value_and_grad(both, has_aux=True)(policy.params.lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, parts)
    assert (
        max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[1])) > 1e-3
    )  # gradients to speak of


def test_several_nodes_after_one_state():
    """Against log-softmax, one row and node at a time; heads out of order."""
    policy = make()
    decoder = nnx.merge(policy.graphdef, *policy.params)
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(2, 3, 16)), jnp.float32)
    head, taken = rng.integers(0, 3, (2, 5)), rng.integers(0, 32, (2, 5))
    logprobs, entropy = vocabulary.tree_scores(decoder, states, head, taken, None)
    every = np.asarray(jax.nn.log_softmax(decoder.logits(states, None)))
    for row in range(2):
        for node in range(5):
            wanted = every[row, head[row, node], taken[row, node]]
            assert float(logprobs[row, node]) == pytest.approx(float(wanted), abs=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(every) * every).sum(-1), atol=1e-5)


def test_the_peak_of_a_large_vocabulary_falls_fivefold(monkeypatch):
    """The compiler's own figure for the gradient of 4 × 512 slots over 128,000 tokens: nothing is run."""
    rows, slots, width, vocab = 4, 512, 16, 128_000
    config = tiny.make_config()

    class Head:
        """A decoder's last step alone."""

        def __init__(self, kernel):
            self.kernel, self.config = kernel, type(config)(**{**vars(config), "vocab_size": vocab})

        def logits(self, states, z):
            return jnp.matmul(states, self.kernel, preferred_element_type=jnp.float32)

    def peak(limit: int) -> int:
        monkeypatch.setattr(vocabulary, "LOGITS_BYTES", limit)

        def loss(states, kernel, head, taken):
            return jnp.sum(vocabulary.tree_scores(Head(kernel), states, head, taken, None)[0])

        shapes = [
            jax.ShapeDtypeStruct(shape, kind)
            for shape, kind in [
                ((rows, slots, width), jnp.float32),
                ((width, vocab), jnp.float32),
                ((rows, slots), jnp.int32),
                ((rows, slots), jnp.int32),
            ]
        ]
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert peak(1 << 40) > 5 * peak(128 << 20)


def test_completions_are_sums_of_what_chunks_give(monkeypatch):
    policy, rows = make(), pack(ROWS)
    whole = sequence_logprobs(policy.graphdef, policy.params, rows, Z)
    monkeypatch.setattr(vocabulary, "LOGITS_BYTES", 4 * len(ROWS) * 32)
    jax.clear_caches()  # the limit is no argument of the compiled program
    np.testing.assert_allclose(sequence_logprobs(policy.graphdef, policy.params, rows, Z), whole, atol=1e-5)
