"""Arrays onto the mesh, and the few constraints inside compiled functions. Without a mesh every function here does nothing.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey
from jax.typing import DTypeLike
from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.mesh import rules
from rlhf.mesh.devices import axis, current, described
from rlhf.mesh.rules import ROWS
from rlhf.run import processes

HostOrDevice = jax.Array | np.ndarray
Index = tuple[slice, ...]
"""A range along every axis."""


def parameters(params: PyTree) -> PyTree:
    """Parameters onto their devices, by the table; those that lie there already are not moved."""
    return _put(params, rules.specs(params)) if current() else params


def made(
    path: Sequence[str | int],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    part: Callable[[Index], np.ndarray],
) -> jax.Array:
    """A parameter made part by part, each on the devices that hold it: no host holds more than one part besides.

    Args:
      path: its names. part: ranges, one an axis → the numbers there, [stop − start, …].
    """
    mesh = current()
    if mesh is None:
        return jnp.asarray(part(tuple(slice(0, size) for size in shape)))
    sharding = NamedSharding(mesh, rules.spec([DictKey(name) for name in path], shape))
    known: dict[str, np.ndarray] = {}

    def of(index: Index | None) -> np.ndarray:
        """Devices that hold the same part are given the same array."""
        assert index is not None, "every part has its place"
        ranges = tuple(slice(*piece.indices(size)[:2]) for piece, size in zip(index, shape, strict=True))
        key = str(ranges)
        if key not in known:
            known[key] = part(ranges)
        return known[key]

    return jax.make_array_from_callback(shape, sharding, of, dtype=jnp.dtype(dtype))


class Stack:
    """A parameter of a stack of layers, filled a layer at a time: no host holds more than one layer's besides.

    Attributes:
      array: [layers, …], zeros where nothing was set yet.
    """

    def __init__(self, path: Sequence[str | int], shape: tuple[int, ...], dtype: DTypeLike):
        mesh, self.path, self.dtype = current(), path, dtype
        spec = None if mesh is None else rules.spec([DictKey(name) for name in path], shape)
        self.sharding = None if mesh is None or spec is None else NamedSharding(mesh, spec)
        self.array = _zeros(shape, jnp.dtype(dtype), self.sharding)

    def set(self, layer: int, part: Callable[[Index], np.ndarray]) -> None:
        """Layer `layer`; `part` as in `made`."""
        new = made(self.path, self.array.shape[1:], self.dtype, part)
        # Waited for: what was read stays in memory until it is copied.
        self.array = jax.block_until_ready(_with_layer(self.array, new, layer, self.sharding))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None) -> jax.Array:
    zeros = jnp.zeros(shape, dtype)
    return zeros if sharding is None else jax.lax.with_sharding_constraint(zeros, sharding)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _with_layer(stack: jax.Array, new: jax.Array, layer: int, sharding: NamedSharding | None) -> jax.Array:
    filled = jax.lax.dynamic_update_index_in_dim(stack, new, layer, 0)
    return filled if sharding is None else jax.lax.with_sharding_constraint(filled, sharding)


def state(params: PyTree, whole: PyTree) -> PyTree:
    """A training state onto its devices, as `pinned` leaves it after every step."""
    return _put(whole, rules.state_specs(params, whole)) if current() else whole


def everywhere(tree: PyTree) -> PyTree:
    """Small arrays, such as settings and populations, whole on every device."""
    return _put(tree, jax.tree.map(lambda leaf: P(), tree)) if current() else tree


def batch(tree: PyTree, dim: int = 0) -> PyTree:
    """Arrays of rows onto the devices that compute them: axis `dim` is divided."""
    if not current():
        return tree
    return _put(tree, jax.tree.map(lambda leaf: row_spec(leaf.shape, dim), tree))


def sent(tree: PyTree) -> PyTree:
    """Arrays of the host onto the device where there is one; those that a mesh holds stay."""
    return tree if processes.several() else jax.device_put(tree)


def _put(tree: PyTree, specs: PyTree) -> PyTree:
    mesh = current()
    assert mesh is not None, "placed under a mesh"
    put = _put_shared if processes.several() else jax.device_put
    return jax.tree.map(lambda leaf, spec: put(leaf, NamedSharding(mesh, spec)), tree, specs)


def _put_shared(leaf: HostOrDevice, sharding: NamedSharding) -> jax.Array:
    """`device_put` of what every process holds alike, or of what lies on the devices of all; nothing is compared."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if isinstance(leaf, jax.Array) and (
        not leaf.is_fully_addressable or jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ):
        return jax.jit(_same, out_shardings=sharding)(leaf)
    whole = np.asarray(leaf)
    whole = whole.astype(jax.dtypes.canonicalize_dtype(whole.dtype), copy=False)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def _same(leaf: jax.Array) -> jax.Array:
    return leaf


def row_spec(shape: tuple[int, ...], dim: int = 0) -> P:
    """Divided over the rows; whole where there are too few of them."""
    return P(*(None,) * dim, ROWS) if len(shape) > dim and shape[dim] % axis(*ROWS) == 0 else P()


def num_row_parts() -> int:
    """Over how many parts the rows of a batch are divided."""
    return axis(*ROWS)


def multiple(size: int) -> int:
    """`size` rounded up so that so many rows can be divided."""
    return -(-size // num_row_parts()) * num_row_parts()


def check_rows(what: str, count: int) -> None:
    """Refuse rows that the devices cannot divide.

    Args:
      what: the key, or keys, that say how many rows one pass has. count: how many.
    Raises:
      UserError: what, and the nearest number that can be divided.
    """
    if count % num_row_parts():
        raise UserError(
            f"{what}: {count} rows in one pass, which {described()} divides over {num_row_parts()} devices; give a multiple of "
            f"{num_row_parts()} ({multiple(count)}), or another mesh"
        )


def constrained(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
    """The same numbers, divided so from here on; of axes that do not divide their size nothing is asked."""
    if axis(*ROWS, "tensor") == 1:
        return x
    parts = [None if over is None or x.shape[i] % _size(over) else over for i, over in enumerate(spec)]
    return jax.lax.with_sharding_constraint(x, P(*parts))


def _size(over: str | tuple[str, ...]) -> int:
    return axis(over) if isinstance(over, str) else axis(*over)


def rows(tree: PyTree, dim: int = 0) -> PyTree:
    """Inside a compiled function: rows stay where they are computed, each whole."""
    return jax.tree.map(lambda leaf: constrained(leaf, *(None,) * dim, ROWS), tree)


def firsts(leaf: HostOrDevice, size: int) -> jax.Array:
    """The first of every `size` neighbouring rows."""
    leaf = jnp.asarray(leaf)
    if axis(*ROWS) == 1:
        return leaf[::size]
    return rows(leaf.reshape(-1, size, *leaf.shape[1:])[:, 0])


def picked(leaf: HostOrDevice, index: jax.Array, dim: int = 0) -> jax.Array:
    """Entries `index` along `dim`, where each part of the index counts entries of the same part of the leaf only.

    So it is with the rows of groups that stand together, whose prompts or prefixes are taken once for each of them: no device
    needs another's. Where entries are fewer than devices they lie on every one.
    """
    leaf, parts = jnp.asarray(leaf), axis(*ROWS)
    size = leaf.shape[dim]
    if parts == 1:
        return leaf[(slice(None),) * dim + (index,)]
    if size % parts or index.shape[0] % parts:
        return _rows_only(jnp.take(leaf, index, axis=dim), dim)
    moved = jnp.moveaxis(leaf, dim, 0)
    own = _rows_only(moved.reshape(parts, size // parts, *moved.shape[1:]))
    place = index.reshape(parts, -1) - (size // parts) * jnp.arange(parts)[:, None]
    found = _rows_only(jax.vmap(lambda leaf, index: leaf[index])(own, place))
    return _rows_only(jnp.moveaxis(found.reshape(index.shape[0], *found.shape[2:]), 0, dim), dim)


def _rows_only(leaf: jax.Array, dim: int = 0) -> jax.Array:
    """Rows stay where they are computed, and nothing is said of the other axes."""
    free = (P.UNCONSTRAINED,) * leaf.ndim
    return jax.lax.with_sharding_constraint(leaf, P(*free[:dim], ROWS, *free[dim + 1 :]))


def pinned(params: PyTree, whole: PyTree) -> PyTree:
    """Inside a compiled step: the new state lies where the old one lay."""
    if axis(*ROWS, "tensor") == 1:
        return whole
    specs = rules.state_specs(params, whole)
    return jax.tree.map(jax.lax.with_sharding_constraint, whole, specs)


def gathered(table: jax.Array, *spec: str | None) -> jax.Array:
    """A matrix [in, out] as it is used, whole along `fsdp`, whose gradient comes back divided as the matrix is.

    Without it the gradient of a matrix at the vocabulary is divided as the logits are, which are gathered for it.

    Args:
      spec: how the matrix lies.
    """
    if axis(*ROWS, "tensor") == 1:
        return table
    return _gathered(table, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(table: jax.Array, spec: tuple[str | None, ...]) -> jax.Array:
    return constrained(table, *(None if over == "fsdp" else over for over in spec))


def _forward(table: jax.Array, spec: tuple[str | None, ...]) -> tuple[jax.Array, None]:
    return _gathered(table, spec), None


def _backward(spec: tuple[str | None, ...], _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # Summed over the rows first, then cut: asked for the cut alone, XLA turns the states of all rows around.
    return (constrained(_gathered(gradient, spec), *spec),)


_gathered.defvjp(_forward, _backward)


def host(array: HostOrDevice) -> np.ndarray:
    """A whole array on the host, wherever its parts are; every process gets it, and all ask for it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        sharding = array.sharding
        assert isinstance(sharding, NamedSharding), "what several processes hold lies on a mesh"
        array = jax.jit(_same, out_shardings=NamedSharding(sharding.mesh, P()))(array)
    return np.asarray(array)


def hosts(tree: PyTree) -> PyTree:
    """`host` of every leaf."""
    return jax.tree.map(host, tree)
