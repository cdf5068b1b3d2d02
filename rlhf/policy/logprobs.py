"""A policy: frozen base weights, LoRA and the conditioner, and the log-probs it gives.

    π(y | x, w) = Decoder(base + LoRA; conditioner at z),  z = Σ^(-1/2)(w_eff − μ)

z = 0 is the aggregate policy π_agg exactly, whatever the kind of conditioner (`models/conditioners.py`).
Shapes: B rows, T nodes, C completions, K basis outputs, D width.
"""

import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rlhf.mesh import place
from rlhf.models import attention
from rlhf.models.adapters import AdapterSpec, Conditioner, Lora
from rlhf.models.conditioners import starts_at_zero
from rlhf.models.config import ModelConfig
from rlhf.models.decoder import Decoder
from rlhf.models.layout import HostOrDevice
from rlhf.policy import lengths, vocabulary
from rlhf.policy.lengths import Widths
from rlhf.policy.packing import PackedRows
from rlhf.run.progress import watched


class PolicyParams(NamedTuple):
    """The arrays of a policy by role; each is an `nnx.State`, empty where there are none."""

    base: PyTree
    lora: PyTree
    conditioner: PyTree


def stages_of(config: ModelConfig, adapter_layers: int | None) -> tuple[int, ...]:
    """Layer counts of the stages when only the top `adapter_layers` (None: all) carry adapters."""
    if adapter_layers is None or adapter_layers >= config.num_layers:
        return (config.num_layers,)
    return (config.num_layers - adapter_layers, adapter_layers)


@functools.lru_cache(maxsize=32)
def structure(
    config: ModelConfig,
    stages: tuple[int, ...],
    spec: AdapterSpec | None,
    dtype: str,
    remat: bool,
    adapted: int = 1,
) -> tuple[nnx.GraphDef, PolicyParams]:
    """The graph definition (static under jit) and the shapes of the parameters, without allocating any.

    The top `adapted` stages have the adapters.

    Cached, so that equal settings give the identical graph definition and nothing compiles twice.
    """

    def make():
        return Decoder(
            config,
            stages=stages,
            spec=spec,
            dtype=jnp.dtype(dtype),
            remat=remat,
            rngs=nnx.Rngs(params=0),
            adapted=adapted,
        )

    graphdef, base, lora, conditioner = nnx.split(nnx.eval_shape(make), nnx.Param, Lora, Conditioner)
    return graphdef, PolicyParams(base, lora, conditioner)


def init_adapters(
    graphdef: nnx.GraphDef, shapes: PolicyParams, key: jax.Array
) -> tuple[nnx.State, nnx.State]:
    """Fresh LoRA and conditioner: the inputs' factors He-uniform (as PEFT does), the outputs' zero.

    Zero output factors make the new policy equal to its base for every z (except for coefficients as text).
    """

    def fill(path, leaf):
        name = [str(key.key) for key in path if hasattr(key, "key")][-1]
        if starts_at_zero(name):
            return jnp.zeros(leaf.shape, leaf.dtype)
        leaf_key = jax.random.fold_in(key, hash_path(path))
        bound = (6.0 / leaf.shape[-2]) ** 0.5
        return jax.random.uniform(leaf_key, leaf.shape, leaf.dtype, -bound, bound)

    return jax.tree_util.tree_map_with_path(fill, (shapes.lora, shapes.conditioner))


def hash_path(path) -> int:
    """A number for a tree path that is the same in every process (Python's hash of a string is not)."""
    return zlib.crc32(jax.tree_util.keystr(path).encode())


def merge(frozen: PolicyParams, trained: dict[str, PyTree], dtype: str) -> PolicyParams:
    """Put the trained parts over the frozen ones.

    Trained base weights are kept in float32, because a step is smaller than bfloat16 can add to a weight, and are
    computed in `dtype`; adapters cast themselves.
    """
    if "base" in trained:
        base = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), trained["base"])
        trained = {**trained, "base": base}
    return frozen._replace(**trained)


@functools.partial(jax.jit, static_argnums=0)
def lower_hidden(graphdef: nnx.GraphDef, params: PolicyParams, rows: PackedRows) -> jax.Array:
    """Activations [B, T, D] under the top stage, which no adapter changes: computed once for fixed rows."""
    decoder = nnx.merge(graphdef, *params)
    context = decoder.context(rows.positions, attention.tree_mask(rows.end))
    hidden, _ = decoder.run_stages(decoder.embed_tokens(rows.tokens), context, last=len(decoder.stages) - 1)
    return hidden


def token_logprobs(
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    rows: PackedRows,
    z: HostOrDevice | None,
    hidden: HostOrDevice | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of the scored nodes, and the entropy of the distributions they were read from.

    Args:
      rows: packed rows.
      z: [B, K], or None for the aggregate policy.
      hidden: what `lower_hidden` returned for these rows, to skip the lower stages.

    Returns:
      float32[B, N] log-probs in nats and float32[B, S] entropies in nats.
    """
    decoder = nnx.merge(graphdef, *params)
    context = decoder.context(rows.positions, attention.tree_mask(rows.end), z=z)
    first = 0 if hidden is None else len(decoder.stages) - 1
    start = decoder.embed_tokens(rows.tokens) if hidden is None else hidden
    states, _ = decoder.run_stages(start, context, first=first)
    read = jnp.take_along_axis(states, rows.heads[:, :, None], axis=1)
    taken = jnp.take_along_axis(rows.tokens, rows.scored, axis=1)
    return vocabulary.tree_scores(decoder, read, rows.scored_head, taken, z)


def completion_sums(values: jax.Array, rows: PackedRows) -> jax.Array:
    """Sum values[B, N] over the nodes of each completion → [B, C]."""
    return jnp.einsum("bcn,bn->bc", rows.member.astype(values.dtype), values)


def real_heads(rows: PackedRows) -> jax.Array:
    """bool[B, S]: heads that a completion's token follows; the others are padding."""
    last = jnp.max(jnp.where(rows.member.any(axis=1), rows.scored_head, 0), axis=1, keepdims=True)
    return jnp.arange(rows.heads.shape[1]) <= last


@functools.partial(jax.jit, static_argnums=0)
def sequence_logprobs(
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    rows: PackedRows,
    z: HostOrDevice | None,
    hidden: HostOrDevice | None = None,
) -> jax.Array:
    """log π(y_c | x, w) for every completion of every row, float32[B, C], nats, summed over tokens."""
    return completion_sums(token_logprobs(graphdef, params, rows, z, hidden)[0], rows)


MAX_CACHED_BYTES = 2 << 30


def cached_hidden(
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    rows: PackedRows,
    widths: Sequence[Widths] | None = None,
    *,
    chunk: int = 8,
) -> np.ndarray | None:
    """`lower_hidden` of every row of a data set, [R, T, D] on the host, or None; 0 on nodes beyond a row's width.

    None when all layers carry adapters (nothing to cache) or the cache would exceed 2 GiB.
    """
    decoder = nnx.merge(graphdef, *params)
    if len(decoder.stages) == 1:
        return None
    dtype = decoder.embed.embedding[...].dtype
    if rows.tokens.size * decoder.config.width * dtype.itemsize > MAX_CACHED_BYTES:
        return None
    num_rows = len(rows.tokens)
    hidden = None
    for index, part in similar(rows, widths, chunk, "lower layers"):
        found = place.host(lower_hidden(graphdef, params, place.batch(part)))
        if hidden is None:
            hidden = np.zeros((num_rows, rows.tokens.shape[1], found.shape[2]), found.dtype)
        hidden[index, : found.shape[1]] = found
    return hidden


def chunks(num_rows: int, size: int, title: str = "") -> Iterator[np.ndarray]:
    """Row numbers 0 … num_rows−1 in chunks of one length: the last row is repeated where rows run out.

    On a mesh the length is one that the devices can divide.

    With a title, work on them that takes a while shows its progress.
    """
    size = place.multiple(min(size, num_rows))
    starts = range(0, num_rows, size)
    for start in watched(starts, title) if title else starts:
        yield np.minimum(np.arange(start, start + size), num_rows - 1)


def similar(
    rows: PackedRows, widths: Sequence[Widths] | None, size: int, title: str = ""
) -> Iterator[tuple[np.ndarray, PackedRows]]:
    """Every row in `chunks`, as (row numbers, rows): in their order and whole, or sorted by length and cut to `widths`."""
    num_rows = len(rows.tokens)
    if widths is None:
        yield from ((index, rows.take(index)) for index in chunks(num_rows, size, title))
        return
    nodes = lengths.used(rows)[:, 0]
    ordered = np.argsort(nodes, kind="stable")
    for places in chunks(num_rows, size, title):
        index = ordered[places]
        yield index, lengths.trimmed(rows.take(index), lengths.fitting(widths, nodes[index]))


def all_logprobs(
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    rows: PackedRows,
    hidden: np.ndarray | None,
    *,
    z: np.ndarray | None = None,
    widths: Sequence[Widths] | None = None,
    chunk: int = 8,
) -> np.ndarray:
    """`sequence_logprobs` of many rows, float32[R, C] on the host, in chunks of one shape or of a few `widths`."""
    found = np.zeros(rows.member.shape[:2], np.float32)
    for index, part in similar(rows, widths, chunk, "score completions"):
        below = None if hidden is None else hidden[index, : part.tokens.shape[1]]
        own = (part, None if z is None else z[index], below)
        found[index] = place.host(sequence_logprobs(graphdef, params, *place.batch(own)))
    return found
