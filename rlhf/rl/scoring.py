"""One teacher-forced pass over left-padded prompts and completions: log-probs, entropies, hidden states.

The state before completion token t is the output at slot W−1+t; it predicts the token and carries its value. Only these T
slots meet the vocabulary, a few at a time when B·T·V numbers are many.

Shapes: B rows, T completion slots, L = W + T slots, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rlhf.models.decoder import Context, Decoder
from rlhf.policy import PolicyParams

LOGITS_BYTES = 128 << 20  # float32 logits held at once; the backward pass holds about three times as much


def context_of(decoder: Decoder, starts: jax.Array, length: int, z: jax.Array | None) -> Context:
    """Positions count from a row's first token and padding is unseen, as in `sampling.generate`."""
    slots = jnp.arange(length)
    positions = slots[None, :] - starts[:, None]
    mask = (positions >= 0)[:, None, :] & (slots[None, None, :] <= slots[None, :, None])
    mask = mask | (slots[None, None, :] == slots[None, :, None])  # a softmax over nothing would be NaN
    return decoder.context(jnp.maximum(positions, 0), mask, z=z, key_positions=positions)


def lower_states(
    graphdef: nnx.GraphDef, params: PolicyParams, tokens: jax.Array, starts: jax.Array
) -> jax.Array | None:
    """Activations [B, L, D] under the top stage, which adapters do not change; None with a single stage."""
    decoder = nnx.merge(graphdef, *params)
    top = len(decoder.stages) - 1
    if top == 0:
        return None
    context = context_of(decoder, starts, tokens.shape[1], None)
    return decoder.run_stages(decoder.embed_tokens(tokens), context, last=top)[0]


def completion_states(
    decoder: Decoder,
    tokens: jax.Array,
    starts: jax.Array,
    z: jax.Array | None,
    hidden: jax.Array | None,
    num_slots: int,
) -> jax.Array:
    """States before each completion token, [B, T, D], before the final norm; from `hidden` where that is known."""
    context = context_of(decoder, starts, tokens.shape[1], z)
    first = 0 if hidden is None else len(decoder.stages) - 1
    start = decoder.embed_tokens(tokens) if hidden is None else hidden
    states, _ = decoder.run_stages(start, context, first=first)
    return jax.lax.slice_in_dim(states, tokens.shape[1] - num_slots - 1, tokens.shape[1] - 1, axis=1)


def token_scores(
    decoder: Decoder, states: jax.Array, taken: jax.Array, z: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of the taken tokens and entropies of their distributions, float32[B, T], nats.

    Both are differentiable. Slots are taken in chunks of at most `LOGITS_BYTES` of logits, recomputed in the backward pass.
    """

    def score(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, taken = inputs
        logits = decoder.logits(states, z)
        logsumexp = jax.nn.logsumexp(logits, axis=-1)
        logprobs = jnp.take_along_axis(logits, taken[..., None], axis=-1)[..., 0] - logsumexp
        expected = jnp.sum(jnp.exp(logits - logsumexp[..., None]) * logits, axis=-1)
        return logprobs, logsumexp - expected

    batch, num_slots = taken.shape
    size = max(1, LOGITS_BYTES // (4 * batch * decoder.config.vocab_size))
    if size >= num_slots:
        return score((states, taken))
    num_chunks = -(-num_slots // size)
    size = -(-num_slots // num_chunks)

    def chunked(values: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, num_chunks * size - num_slots)] + [(0, 0)] * (values.ndim - 2)
        parts = jnp.pad(values, padding).reshape(batch, num_chunks, size, *values.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    def joined(parts: jax.Array) -> jax.Array:
        return jnp.moveaxis(parts, 0, 1).reshape(batch, -1)[:, :num_slots]

    logprobs, entropy = jax.lax.map(jax.checkpoint(score), (chunked(states), chunked(taken)))
    return joined(logprobs), joined(entropy)
