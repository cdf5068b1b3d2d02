"""Token by token: weights cut for decoding, the state that goes from token to token, and one step.

The state knows nothing of keys, filters or stops, and whoever loops over `step` may change rows between two steps: `take`
keeps some of them. All rows write the same slot; a row whose text begins later has its first token at a later slot.

Shapes: B rows, P prompt slots, S slots, W words' slots, V vocabulary, K basis outputs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rlhf.mesh import place
from rlhf.models.cache import LayerCache, layer_caches
from rlhf.models.conditioners import WordKeys
from rlhf.models.decoder import Context, Decoder
from rlhf.policy.logprobs import PolicyParams, structure


class State(NamedTuple):
    """What the next token needs of all those before it.

    Attributes:
      caches: one a layer, of W + S slots; the words that z writes are in the first W slots.
      slot: int32 scalar, where the next token goes, 0 … S−1.
      starts: int32[B], slot of each row's first token; what lies before it is not seen.
      z: [B, K], None for the aggregate policy.
      words: where the words stand (keys and values are in the caches); None where there are none.
    """

    caches: tuple[LayerCache, ...]
    slot: jax.Array
    starts: jax.Array
    z: jax.Array | None
    words: WordKeys | None

    def take(self, rows: jax.Array) -> "State":
        """Some of the rows, in this order (`place.picked`)."""
        caches, starts, z = jax.tree.map(
            lambda part: place.picked(part, rows), (self.caches, self.starts, self.z)
        )
        return State(caches, self.slot, starts, z, None if self.words is None else self.words.take(rows))


def apart(graphdef: nnx.GraphDef, params: PolicyParams) -> tuple[nnx.GraphDef, PolicyParams]:
    """The same policy with every layer a stage of its own, so that a loop over tokens reads weights where they lie.

    It copies the layers' weights. As they are where that has been done.
    """
    decoder = nnx.merge(graphdef, *params)
    sizes, config = decoder.stage_sizes, decoder.config
    if max(sizes) == 1:
        return graphdef, params
    dtype = decoder.embed.embedding[...].dtype.name
    adapted = sum(sizes[len(sizes) - decoder.adapted :])
    single = (1,) * config.num_layers
    graphdef, shapes = structure(config, single, decoder.spec, dtype, False, adapted)
    bounds = np.cumsum((0, *sizes))

    def cut(state: PyTree, shape: PyTree) -> PyTree:
        tree = nnx.to_pure_dict(state)
        stages = {
            int(bounds[i]) + layer: jax.tree.map(lambda a, layer=layer: a[layer : layer + 1], stage)
            for i, stage in tree.get("stages", {}).items()
            for layer in range(sizes[i])
        }
        filled = jax.tree.map(lambda leaf: leaf, shape)  # a copy: `structure` is cached
        nnx.replace_by_pure_dict(filled, {**tree, "stages": stages} if stages else tree)
        return filled

    return graphdef, PolicyParams(*(cut(*pair) for pair in zip(params, shapes, strict=True)))


def _context(decoder: Decoder, state: State, num_queries: int, num_slots: int) -> Context:
    """Positions count from a row's first token; padding is unseen."""
    slots, queries = jnp.arange(num_slots), state.slot + jnp.arange(num_queries)
    key_positions = slots[None, :] - state.starts[:, None]
    positions = jnp.maximum(queries[None, :] - state.starts[:, None], 0)
    mask = (key_positions >= 0)[:, None, :] & (slots[None, None, :] <= queries[None, :, None])
    # A padded query sees its own slot, so that its softmax is not over nothing.
    mask = mask | (slots[None, None, :] == queries[None, :, None])
    return decoder.context(
        positions, mask, z=state.z, key_positions=key_positions, index=state.slot, words=state.words
    )


def prefill(
    decoder: Decoder,
    prompts: jax.Array,
    starts: jax.Array,
    z: jax.Array | None,
    room: int,
    group_size: int = 1,
) -> tuple[jax.Array, State]:
    """Read prompts: logits float32[B, V] of what follows them, and a state with `room` slots more.

    Args:
      prompts: int32[B, P], left-padded; `starts` int32[B], slot of each row's first token.
      group_size: so many neighbouring rows have the same prompt and z, which is then read once for all of them.
    """
    batch, width = prompts.shape
    groups = jnp.arange(batch) // group_size
    zero = jnp.zeros((), jnp.int32)
    own, own_starts, own_z = jax.tree.map(lambda part: place.firsts(part, group_size), (prompts, starts, z))
    words = decoder.read_words(own_z)
    once = State((), zero, own_starts, own_z, words)
    empty = decoder.empty_cache(len(own), width)
    context = _context(decoder, once, width, width)
    hidden, kept = decoder.run_stages(decoder.embed_tokens(own), context, cache=empty)
    logits = decoder.logits(hidden[:, -1], own_z)
    if words is not None:
        kept = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), (words.keys, words.values), kept)
        words = words._replace(keys=(), values=())
    state = once._replace(caches=layer_caches(kept, room), slot=zero + width, words=words)
    return place.picked(logits, groups), state.take(groups)._replace(starts=starts, z=z)


def step(decoder: Decoder, state: State, tokens: jax.Array) -> tuple[jax.Array, State]:
    """Read one token a row, int32[B]: logits float32[B, V] of what follows, and the state after it.

    The decoder's layers are stages of their own (`apart`).
    """
    num_words = 0 if state.words is None else state.words.valid.shape[1]
    context = _context(decoder, state, 1, state.caches[0].keys.shape[-1] - num_words)
    # The words' positions are part of the context; their keys and values are in the caches.
    context = dataclasses.replace(context, words=None, index=num_words + state.slot)
    hidden, caches = decoder.step(decoder.embed_tokens(tokens[:, None]), context, state.caches)
    return decoder.logits(hidden[:, -1], state.z), state._replace(caches=caches, slot=state.slot + 1)
