"""Keys and values of past tokens.

Two forms. `Cache` belongs to the stacks that `lax.scan` runs and serves whole texts. `LayerCache` belongs to one layer of
a decoding loop: XLA writes a loop's own buffers in place only where each is one array, neither sliced nor stacked again.

Shapes: B rows, S slots, W words' slots, G key/value heads, h head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """Keys and values of past tokens: for each stage, [layers, B, S, G, h] twice; `index` is where to write next."""

    keys: tuple[jax.Array | None, ...]
    values: tuple[jax.Array | None, ...]
    index: jax.Array


class LayerCache(NamedTuple):
    """keys, values: [B, S, G, h] of one layer."""

    keys: jax.Array
    values: jax.Array

    def write(self, keys: jax.Array, values: jax.Array, slot: jax.Array) -> "LayerCache":
        """Put keys and values [B, T, G, h] into the slots from `slot` on."""
        start = (0, slot, 0, 0)
        return LayerCache(
            jax.lax.dynamic_update_slice(self.keys, keys.astype(self.keys.dtype), start),
            jax.lax.dynamic_update_slice(self.values, values.astype(self.values.dtype), start),
        )


def layer_caches(
    kept: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]], room: int
) -> tuple[LayerCache, ...]:
    """One cache a layer, bottom first, from the stages' keys and values [layers, B, S, G, h], with `room` slots more."""
    padding = [(0, 0), (0, room), (0, 0), (0, 0)]
    return tuple(
        LayerCache(*(jnp.pad(part, padding) for part in layer))
        for stage in zip(*kept, strict=True)
        for layer in zip(*stage, strict=True)
    )
