"""Keys and values of past tokens.

Two forms. `Cache` belongs to the stacks that `lax.scan` runs and serves whole texts. `LayerCache` belongs to one layer of
a decoding loop: XLA writes a loop's own buffers in place only where each is one array, neither sliced nor stacked again.

Shapes: B rows, S slots, W words' slots, G key/value heads, h head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf.mesh import place
from rlhf.mesh.rules import ROWS


class Cache(NamedTuple):
    """Keys and values of past tokens: for each stage, [layers, B, S, G, h] twice; `index` is where to write next."""

    keys: tuple[jax.Array | None, ...]
    values: tuple[jax.Array | None, ...]
    index: jax.Array


class LayerCache(NamedTuple):
    """keys [B, G, h, S] and values [B, G, S, h] of one layer: as the products with one query read them."""

    keys: jax.Array
    values: jax.Array

    def write(self, key: jax.Array, value: jax.Array, slot: jax.Array) -> "LayerCache":
        """Put the key and the value of one token a row, [B, 1, G, h], into a slot."""
        key = key.transpose(0, 2, 3, 1).astype(self.keys.dtype)
        value = value.transpose(0, 2, 1, 3).astype(self.values.dtype)
        return LayerCache(
            jax.lax.dynamic_update_slice(self.keys, key, (0, 0, 0, slot)),
            jax.lax.dynamic_update_slice(self.values, value, (0, 0, slot, 0)),
        )


def layer_caches(
    kept: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]], room: int
) -> tuple[LayerCache, ...]:
    """One cache a layer, bottom first, from the stages' keys and values [layers, B, S, G, h], with `room` slots more."""
    padding = [(0, 0), (0, room), (0, 0), (0, 0)]
    return tuple(
        LayerCache(
            place.constrained(jnp.pad(key, padding).transpose(0, 2, 3, 1), ROWS, "tensor"),
            place.constrained(jnp.pad(value, padding).transpose(0, 2, 1, 3), ROWS, "tensor"),
        )
        for stage in zip(*kept, strict=True)
        for key, value in zip(*stage, strict=True)
    )
