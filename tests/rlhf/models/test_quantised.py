"""Matrices in codes: against loops in NumPy, and a product that keeps the codes alone for its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from rewards.errors import UserError
from rlhf.models import quantised

# Dettmers et al. 2023, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
NUM_IN, NUM_OUT = 192, 24


@pytest.fixture(scope="module")
def matrix():
    found = np.random.default_rng(0).normal(size=(NUM_IN, NUM_OUT)).astype(np.float32)
    found[:, 3] = 0.0  # a column of nothing
    found[64:128, 5] *= 1e-3  # a small block beside larger ones
    return found


def by_hand(kept: str, matrix: np.ndarray, block: int) -> np.ndarray:
    """What quantising leaves of a matrix, one block of one column at a time."""
    left = np.empty_like(matrix)
    for column in range(matrix.shape[1]):
        for first in range(0, len(matrix), block):
            part = matrix[first : first + block, column]
            largest = np.abs(part).max() or 1.0
            if kept == "int8":
                scale = largest / 127.5
                values = [np.clip(np.round(x / scale), -127, 127) * scale for x in part]
            else:
                values = [largest * min(NF4, key=lambda level: abs(level - x / largest)) for x in part]
            left[first : first + block, column] = values
    return left


@pytest.mark.parametrize(("kept", "block"), [("int8", NUM_IN), ("nf4", 64)])
def test_codes_are_those_of_a_loop(kept, block, matrix, monkeypatch):
    monkeypatch.setattr(quantised, "NUMBERS_AT_ONCE", NUM_IN * 7)  # some columns at a time
    assert quantised.block_of(kept, NUM_IN) == block
    found = quantised.quantised(kept, matrix, block)
    like = quantised.shapes(kept, matrix.shape)
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in like]
    left = quantised.dequantised(found)
    np.testing.assert_allclose(left, by_hand(kept, matrix, block), atol=1e-6)
    kind = "nf4" if kept == "nf4" else jnp.int8
    theirs = qwix.quantize(jnp.asarray(matrix), kind, channelwise_axes=(1,), tiled_axes={0: block})
    np.testing.assert_array_equal(left, qwix.dequantize(theirs))


@pytest.mark.parametrize(("kept", "bound"), [("int8", 0.5 / 127.5), ("nf4", 0.152)])
def test_no_weight_moves_by_more_than_half_a_step(kept, bound, matrix):
    """Of the largest of its block; nf4's widest step is between −1 and −0.696."""
    block = quantised.block_of(kept, NUM_IN)
    moved = np.abs(quantised.dequantised(quantised.quantised(kept, matrix, block)) - matrix)
    largest = np.abs(matrix).reshape(-1, block, NUM_OUT).max(axis=1, keepdims=True)
    share = moved.reshape(-1, block, NUM_OUT) / np.maximum(largest, 1e-30)
    # The largest positive weight of a column of int8 is rounded from 127.5 to 127.
    assert share.max() <= bound * 1.0001
    assert share.max() > 0.8 * bound


@pytest.mark.parametrize(("num_in", "block"), [(576, 64), (96, 32), (100, 4), (6, 2)])
def test_blocks_divide_the_inputs(num_in, block):
    assert quantised.block_of("nf4", num_in) == block
    codes, scales = quantised.shapes("nf4", (3, num_in, 5))
    assert codes.shape == (3, num_in // 2, 5) and scales.shape == (3, num_in // block, 5)


def test_an_odd_number_of_inputs_has_no_pairs():
    with pytest.raises(UserError, match="model.base nf4: .* has 7 inputs, and two share a byte; take int8"):
        quantised.shapes("nf4", (7, 5))


@pytest.mark.parametrize("kept", ["int8", "nf4", "bfloat16"])
def test_the_gradient_is_that_of_the_whole_matrix_which_is_not_kept_for_it(kept, matrix):
    if kept == "bfloat16":
        kernel = jnp.asarray(matrix[:, :NUM_OUT], jnp.bfloat16)
        whole = kernel.astype(jnp.float32)
    else:
        kernel = jax.tree.map(
            jnp.asarray, quantised.quantised(kept, matrix, quantised.block_of(kept, NUM_IN))
        )
        whole = quantised.dequantised(kernel)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, NUM_IN)), jnp.float32)

    def loss(x, product):
        return jnp.sum(jnp.tanh(product(x)))

    value, gradient = jax.value_and_grad(loss)(x, lambda x: quantised.matmul(x, kernel))
    expected, other = jax.value_and_grad(loss)(x, lambda x: x @ whole)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", ["int8", "nf4"])
def test_a_stack_of_layers_is_never_made_whole(kept):
    """What a scan over layers and its backward pass take besides their arguments is less than the stack in float32."""
    layers, width = 16, 128
    shape = (layers, width, width)
    stack = quantised.shapes(kept, shape)

    def loss(x, stack):
        def body(x, matrix):
            return jnp.tanh(quantised.matmul(x, matrix)), None

        return jnp.sum(jax.lax.scan(body, x, stack)[0])

    x = jax.ShapeDtypeStruct((2, width), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(x, stack).compile()
    found = compiled.memory_analysis()
    assert found is not None
    assert found.temp_size_in_bytes < 4 * np.prod(shape) / 2, kept
