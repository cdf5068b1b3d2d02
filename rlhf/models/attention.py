"""Masks and grouped-query attention.

Shapes: B rows, T queries, S keys, H heads, G key/value heads, h head width.
"""

import jax
import jax.numpy as jnp

from rlhf.models.layout import HostOrDevice


def tree_mask(end: HostOrDevice) -> jax.Array:
    """bool[B, T, T]: node j sees i iff i ≤ j < end[i], i is j or one of its ancestors (depth-first order)."""
    index = jnp.arange(end.shape[1])
    return (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < end[:, None, :])


def within_window(query_positions: jax.Array, key_positions: jax.Array, window: int) -> jax.Array:
    """bool[B, T, S]: the key lies at most window − 1 positions back."""
    return query_positions[:, :, None] - key_positions[:, None, :] < window


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, scale: float, softcap: float | None
) -> jax.Array:
    """Softmax attention of query[B, T, H, h] over key, value[B, S, G, h] where mask[B, T, S]; softmax in float32.

    With `softcap` c the scores s become c·tanh(s/c) (Gemma 2); jax.nn.dot_product_attention has no such
    argument, so that case is written out.
    """
    if softcap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], scale=scale)
    batch, num_queries, num_heads, head_dim = query.shape
    num_groups = key.shape[2]
    query = query.reshape(batch, num_queries, num_groups, num_heads // num_groups, head_dim)
    scores = jnp.einsum("btgrh,bsgh->bgrts", query, key, preferred_element_type=jnp.float32) * scale
    scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("bgrts,bsgh->btgrh", weights, value)
    return out.reshape(batch, num_queries, num_heads, head_dim)


def attend_one(
    query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, scale: float, softcap: float | None
) -> jax.Array:
    """`attend` for one query a row, query[B, 1, H, h], over a cache: keys[B, G, h, S], values[B, G, S, h].

    Both products read the cache as it lies; `attend` would have it copied into another order at every token.
    """
    batch, _, num_heads, head_dim = query.shape
    num_groups = keys.shape[1]
    query = query.reshape(batch, num_groups, num_heads // num_groups, head_dim)
    scores = jnp.einsum("bgrh,bghs->bgrs", query, keys, preferred_element_type=jnp.float32) * scale
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("bgrs,bgsh->bgrh", weights, values).reshape(batch, 1, num_heads, head_dim)
