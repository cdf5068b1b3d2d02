"""Hidden states of completions, packed into shared rows: one forward pass for encoders and classifiers alike.

Shapes: B rows, T nodes, N scored nodes, C completions, I items, D width.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlhf.models import attention
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams, chunks
from rlhf.policy.packing import PackedRows, Sequences, fill_rows, pack

ROW_LENGTH = 512
CHUNK = 4


def pooled_states(
    base: policy_store.Base, sequences: Sequence[Sequences], num_layers: int, pool: str
) -> np.ndarray:
    """float32[I, D]: states after the first `num_layers` layers, pooled over each sequence's completion.

    Args:
      sequences: one completion each.
      num_layers: all of them includes the final norm; 0 is the token embedding.
      pool: "mean" over the completion's tokens, or its "last" token.
    """
    items: dict[Sequences, list[int]] = {}
    for item, sequence in enumerate(sequences):
        items.setdefault(sequence, []).append(item)
    longest = max(len(s.prompt) + len(s.completions[0]) for s in items)
    rows = fill_rows(items, max(ROW_LENGTH, longest))
    embed = _embedder(base, num_layers, pool)
    out = np.zeros((len(sequences), base.config.width), np.float32)
    packed = few_shapes(pack(rows))
    for index in chunks(len(rows), CHUNK, "embed"):
        values = np.asarray(embed(packed.take(index)))
        for row, number in zip(values, index, strict=True):
            for value, group in zip(row, rows[number], strict=False):
                out[items[group]] = value
    return out


def few_shapes(packed: PackedRows) -> PackedRows:
    """Pad nodes, scored nodes and completions to powers of two, and leave out the heads, which pooling does not read.

    Completions that are sampled anew in every training iteration then meet a handful of compiled programs.
    """

    def padded(array: np.ndarray, *sizes: int) -> np.ndarray:
        extra = [(0, size - have) for size, have in zip(sizes, array.shape[1:], strict=True)]
        return np.pad(array, [(0, 0), *extra])

    num_rows, num_nodes = packed.tokens.shape
    nodes, scored, completions = (
        1 << (max(size, 8) - 1).bit_length()
        for size in (num_nodes, packed.scored.shape[1], packed.member.shape[1])
    )
    end = np.tile(np.arange(1, nodes + 1, dtype=np.int32), (num_rows, 1))  # padding sees only itself
    end[:, :num_nodes] = packed.end
    nothing = np.zeros((num_rows, 0), np.int32)
    return PackedRows(
        tokens=padded(packed.tokens, nodes),
        positions=padded(packed.positions, nodes),
        end=end,
        heads=nothing,
        scored=padded(packed.scored, scored),
        scored_head=nothing,
        member=padded(packed.member, completions, scored),
    )


def _embedder(base: policy_store.Base, num_layers: int, pool: str):
    total = base.config.num_layers
    stages = (total,) if num_layers in (0, total) else (num_layers, total - num_layers)
    tree = policy_store.restage(base.tree, base.stages, stages)
    graphdef, params, _ = policy_store.base_state(
        dataclasses.replace(base, tree=tree, stages=stages), None, "float32", False
    )
    last = 0 if num_layers == 0 else 1
    return functools.partial(_pooled, graphdef, params, last=last, final_norm=num_layers == total, pool=pool)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("last", "final_norm", "pool"))
def _pooled(
    graphdef: nnx.GraphDef, params: PolicyParams, rows: PackedRows, *, last: int, final_norm: bool, pool: str
) -> jax.Array:
    """Pooled hidden states of every completion, float32[B, C, D]."""
    return pooled_nodes(graphdef, params, rows, last=last, final_norm=final_norm, pool=pool)


def pooled_nodes(
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    rows: PackedRows,
    *,
    pool: str,
    last: int | None = None,
    final_norm: bool = True,
) -> jax.Array:
    """States of every completion of packed rows, pooled over its tokens, float32[B, C, D]; inside a compiled function.

    Args:
      pool: "mean" or "last". last: stages to run, None all. final_norm: whether the final norm follows.
    """
    decoder = nnx.merge(graphdef, *params)
    context = decoder.context(rows.positions, attention.tree_mask(rows.end))
    hidden, _ = decoder.run_stages(decoder.embed_tokens(rows.tokens), context, last=last)
    hidden = decoder.final_norm(hidden) if final_norm else hidden
    scored = jnp.take_along_axis(hidden, rows.scored[:, :, None], axis=1).astype(jnp.float32)
    if pool == "last":
        depth = jnp.take_along_axis(rows.positions, rows.scored, axis=1)
        deepest = jnp.argmax(jnp.where(rows.member, depth[:, None, :], -1), axis=2)
        return jnp.take_along_axis(scored, deepest[:, :, None], axis=1)
    count = jnp.maximum(jnp.sum(rows.member, axis=2), 1)[:, :, None]
    return jnp.einsum("bcn,bnd->bcd", rows.member.astype(jnp.float32), scored) / count
