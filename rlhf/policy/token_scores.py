"""Log-probs of given tokens, and whether each was the likeliest: plain rows, a token at a time, blocks of the vocabulary's rows.

Shapes: B rows, T tokens a row, V vocabulary, K basis outputs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models import attention
from rlhf.models.layout import HostOrDevice
from rlhf.policy.logprobs import PolicyParams

BLOCK = 64
"""Positions whose logits are in memory at a time; rows are padded to a multiple."""


@functools.partial(jax.jit, static_argnums=0)
def next_tokens(
    graphdef: nnx.GraphDef, params: PolicyParams, tokens: HostOrDevice, z: HostOrDevice | None
) -> tuple[jax.Array, jax.Array]:
    """What the model says of the token after each: log π(y_{t+1} | y_{≤t}, w) in nats, and whether it is the argmax.

    Args:
      tokens: int32[B, T], T a multiple of `BLOCK`; padding stands behind, where it changes nothing before it.
      z: [B, K], or None for the aggregate policy.

    Returns:
      float32[B, T] and bool[B, T]; the last column, after which there is no token, means nothing.
    """
    decoder = nnx.merge(graphdef, *params)
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    end = jnp.full((batch, length), length, jnp.int32)
    context = decoder.context(positions, attention.tree_mask(end), z=z)
    states, _ = decoder.run_stages(decoder.embed_tokens(tokens), context)
    following = jnp.roll(tokens, -1, axis=1)

    def block(parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, wanted = parts
        logits = decoder.logits(hidden, z)
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)[..., 0]
        return taken, jnp.argmax(logits, axis=-1) == wanted

    def cut(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(batch, length // BLOCK, BLOCK, *array.shape[2:]), 1, 0)

    found = jax.lax.map(block, (cut(states), cut(following)))
    scores, best = (jnp.moveaxis(part, 0, 1).reshape(batch, length) for part in found)
    return scores, best


def padded(rows: list[list[int]]) -> np.ndarray:
    """int32[B, T] of rows of ids, zeros behind them, T a multiple of `BLOCK`."""
    length = -(-max(map(len, rows)) // BLOCK) * BLOCK
    tokens = np.zeros((len(rows), length), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens
