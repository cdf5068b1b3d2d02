"""How the frozen matrices of the layers are kept: as they are, in bfloat16, or in codes of 8 or 4 bits with scales.

    int8   W ≈ s_o c,  c ∈ −127 … 127, one s a column (output)                           8 bits a weight
    nf4    W ≈ s_bo t[c],  c ∈ 0 … 15, one s for 64 neighbouring inputs of an output     4.5 bits a weight

t are the 16 quantiles of a normal distribution of QLoRA (Dettmers et al. 2023, appendix E), s float32 (not quantised once
more, as QLoRA may). A byte holds the codes of an input in the first half of its block and of the one as far into the second:
XLA's own numbers of four bits are copied one by one on CPUs. A matrix is made whole where it is used, one at a time, in the
forward pass and again in the backward pass; embeddings, norms, biases and the head stay in the type that is computed in. Codes
and scales are made by qwix.

Shapes: I inputs, O outputs, b inputs of a block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rewards.errors import UserError
from rlhf.models.layout import HostOrDevice, Tree

CODES: dict[str, DTypeLike] = {"int8": jnp.int8, "nf4": jnp.uint8}
BLOCK = 64
NUMBERS_AT_ONCE = 1 << 22
"""Weights that are quantised together: what that takes besides is some 50 MB."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Quantised(NamedTuple):
    """A matrix in codes.

    Attributes:
      codes: int8 [..., I, O], or of nf4 uint8 [..., I / 2, O].
      scales: float32 [..., I / b, O]; b = I for int8.
    """

    codes: HostOrDevice
    scales: HostOrDevice


def coded(kept: str | None) -> bool:
    """Whether matrices are kept in codes."""
    return kept in CODES


def block_of(kept: str, num_in: int) -> int:
    """Inputs that share a scale: all, or 64 (the largest part of 64 that divides the inputs).

    Raises:
      UserError: nf4 of an odd number of inputs.
    """
    if kept == "int8":
        return num_in
    if num_in % 2:
        raise UserError(
            f"model.base nf4: a matrix of this model has {num_in} inputs, and two share a byte; take int8"
        )
    return math.gcd(num_in, BLOCK)


def rows_of(kept: str, block: int) -> int:
    """Rows of codes that a block of inputs takes."""
    return block // 2 if kept == "nf4" else block


def shapes(kept: str, shape: tuple[int, ...]) -> Quantised:
    """Shapes and types of what a matrix [..., I, O] becomes."""
    *stack, num_in, num_out = shape
    block = block_of(kept, num_in)
    blocks = num_in // block
    codes, scales = (*stack, blocks * rows_of(kept, block), num_out), (*stack, blocks, num_out)
    return jax.eval_shape(lambda: Quantised(jnp.zeros(codes, CODES[kept]), jnp.zeros(scales, jnp.float32)))


def quantised(kept: str, matrix: HostOrDevice, block: int) -> Quantised:
    """Whole blocks of a matrix [I, O] in codes, on the host; some columns at a time."""
    num_in, num_out = matrix.shape
    step = max(1, NUMBERS_AT_ONCE // num_in)
    parts = [
        jax.tree.map(np.asarray, _quantised(kept, block, jnp.asarray(matrix[:, first : first + step])))
        for first in range(0, num_out, step)
    ]
    return Quantised(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))


def tree_of(kept: str | None, tree: Tree) -> Tree:
    """A parameter tree with the matrices of its layers kept so."""
    if kept is None:
        return tree
    return {**tree, "stages": _coded_tree(kept, tree["stages"])}


def _coded_tree(kept: str, tree: Tree) -> Tree:
    found: Tree = {name: _coded_tree(kept, leaf) for name, leaf in tree.items() if isinstance(leaf, dict)}
    plain = {name: leaf for name, leaf in tree.items() if not isinstance(leaf, dict)}
    if "kernel" in plain:
        stack = plain.pop("kernel")
        if coded(kept):
            block = block_of(kept, stack.shape[1])
            each = [quantised(kept, matrix, block) for matrix in stack]
            parts = Quantised(*(np.stack(part) for part in zip(*each, strict=True)))
            found |= jax.tree.map(jnp.asarray, parts)._asdict()
        else:
            found["kernel"] = jnp.asarray(stack, kept)
    return {**plain, **found}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantised(kept: str, block: int, matrix: jax.Array) -> Quantised:
    import qwix  # late: only who keeps weights in codes waits for it

    found = qwix.quantize(
        matrix.astype(jnp.float32),
        jnp.int8 if kept == "int8" else kept,
        channelwise_axes=(1,),
        tiled_axes={0: block},
    )
    if kept == "int8":
        return Quantised(found.qvalue, found.scale)
    low, high = jnp.moveaxis(found.qvalue.astype(jnp.uint8).reshape(-1, 2, block // 2, matrix.shape[1]), 1, 0)
    return Quantised((low | high << 4).reshape(-1, matrix.shape[1]), found.scale)


def dequantised(matrix: Quantised, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """[..., I, O]; the product with the scale is float32, rounded once.

    As `qwix.dequantize`, which strings all codes of a matrix together: on a mesh that gathers it on every device.
    """
    codes, scales = jnp.asarray(matrix.codes), jnp.asarray(matrix.scales)
    *stack, blocks, num_out = scales.shape
    blocked = codes.reshape(*stack, blocks, -1, num_out)
    if codes.dtype == jnp.uint8:
        halves = jnp.concatenate([blocked & 15, blocked >> 4], axis=-2)
        values = jnp.asarray(NF4, jnp.float32)[halves]
    else:
        values = blocked.astype(jnp.float32)
    return (values * scales[..., None, :]).reshape(*stack, -1, num_out).astype(dtype)


@jax.custom_vjp
def matmul(x: jax.Array, matrix: Quantised | jax.Array) -> jax.Array:
    """x [..., I] times a frozen matrix in the type of x; the backward pass keeps what the matrix is kept as, never the matrix."""
    return x @ _whole(matrix, x)


def _whole(matrix: Quantised | jax.Array, x: jax.Array) -> jax.Array:
    # Tied to x: the matrices of a loop over tokens might be made before the loop, all at once. (XLA for CPUs does not mind it.)
    matrix, _ = jax.lax.optimization_barrier((matrix, x))
    return dequantised(matrix, x.dtype) if isinstance(matrix, Quantised) else matrix.astype(x.dtype)


def _forward(x, matrix):
    return matmul(x, matrix), matrix


def _backward(matrix, gradient):
    return gradient @ _whole(matrix, gradient).T, None


matmul.defvjp(_forward, _backward)
