"""Where every parameter lies: one table from what it is to the axes that divide it.

A matrix is divided along the axis that its heads or hidden units lie on by `tensor`, along the other by `fsdp`, so a block
needs one sum over `tensor` after `o` and one after `down`. The factors of LoRA and of the low-rank conditioner follow the
side of their matrix; what is small is whole on every device. Parameters are known by the last two names of their path
(layer and array), whatever stands before: stages, moments of the optimiser, a critic's own adapters.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from rewards.errors import UserError
from rlhf.mesh.devices import axis

ROWS = ("data", "fsdp")
"""The axes that rows of a batch are divided over."""

_OUT = {  # out of the width: [width, heads or hidden units]
    "kernel": P("fsdp", "tensor"),
    "codes": P("fsdp", "tensor"),
    "scales": P("fsdp", "tensor"),
    "bias": P("tensor"),
    "lora_a": P("fsdp", None),
    "lora_b": P(None, "tensor"),
    "basis_a": P("fsdp", None),
    "basis_b": P(None, "tensor"),
}
_BACK = {  # back into it: [heads or hidden units, width]
    "kernel": P("tensor", "fsdp"),
    "codes": P("tensor", "fsdp"),
    "scales": P("tensor", "fsdp"),
    "bias": P(),
    "lora_a": P("tensor", None),
    "lora_b": P(None, "fsdp"),
    "basis_a": P("tensor", None),
    "basis_b": P(None, "fsdp"),
}
_LAYERS: Mapping[str, Mapping[str, P]] = {
    **dict.fromkeys(("q", "k", "v", "gate", "up", "head"), _OUT),
    **dict.fromkeys(("o", "down"), _BACK),
    # A mixture of experts: every device holds a part of each expert.
    "mlp": {
        "router": P("fsdp", None),
        **dict.fromkeys(("gate", "up"), P(None, "fsdp", "tensor")),
        "down": P(None, "tensor", "fsdp"),
    },
    "embed": {"embedding": P("tensor", "fsdp")},
    "logit_heads": {"heads_a": P("fsdp", None), "heads_b": P(None, "tensor")},
    "score": dict.fromkeys(("kernel", "shared", "tastes", "people"), P()),
}
_WHERE_IT_DIVIDES = ("scales",)
"""One for many weights: whole along an axis that does not divide their number."""
_NAMES: Mapping[str, P] = {  # whole on every device, wherever they are
    **dict.fromkeys(("scale", "film_scale", "film_shift", "prefix_keys", "prefix_values"), P()),
    **dict.fromkeys(("w1", "b1", "w2", "b2"), P()),
}


def names_of(path: Sequence[Any]) -> tuple[str, ...]:
    """The names in a tree path: keys and fields, without the `.value` of a variable."""
    found = (getattr(part, "key", getattr(part, "name", getattr(part, "idx", ""))) for part in path)
    return tuple(str(name) for name in found if name != "value")


def spec(path: Sequence[Any], shape: tuple[int, ...]) -> P:
    """How the parameter at `path` is divided; a stack of layers is divided like one of them.

    Raises:
      UserError: no rule knows the parameter, or an axis does not divide its size; the parameter is named.
    """
    names = names_of(path)
    layer, name = ("", *names)[-2:]
    rule = _LAYERS.get(layer, {}).get(name, _NAMES.get(name))
    where = ".".join(names)
    if rule is None:
        raise UserError(
            f"mesh: no rule says how {where} {list(shape)} is divided; add one to the table in rlhf/mesh/rules.py"
        )
    if not len(rule):
        return P()
    stacked = len(shape) - len(rule)
    if stacked not in (0, 1):
        raise UserError(f"mesh: {where} {list(shape)} has another shape than its rule {rule} is for")
    rule = P(*(None,) * stacked, *rule)
    if name in _WHERE_IT_DIVIDES:
        return P(
            *(None if over and size % axis(over) else over for size, over in zip(shape, rule, strict=True))
        )
    for size, over in zip(shape, rule, strict=True):
        if over is not None and size % axis(over):
            raise UserError(
                f"mesh.{over} {axis(over)}: does not divide {size}, a size of {where} {list(shape)}; give mesh.{over} a divisor "
                f"of {size}"
            )
    return rule


def specs(params: PyTree) -> PyTree:
    """`spec` of every parameter (arrays or shapes); checks them all."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: spec(path, leaf.shape), params)


def state_specs(params: PyTree, state: PyTree) -> PyTree:
    """How a training state is divided: what is of the same name and shape as a trained parameter as that, the rest whole.

    Args:
      params: the trained parameters. state: whatever holds them, their moments, counters and keys.
    """
    known = {
        (names_of(path)[-2:], leaf.shape): spec(path, leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def of(path: Sequence[Any], leaf: jax.Array) -> P:
        return known.get((names_of(path)[-2:], leaf.shape), P())

    return jax.tree_util.tree_map_with_path(of, state)


def check_model(*, num_heads: int, num_kv_heads: int, mlp_width: int) -> None:
    """Refuse a tensor axis that would cut through a head, from the architecture alone.

    Raises:
      UserError: which number of the model `mesh.tensor` does not divide, and which it may be.
    """
    tensor = axis("tensor")
    common = math.gcd(num_heads, num_kv_heads, mlp_width)
    for number, what in (
        (num_heads, "attention heads"),
        (num_kv_heads, "key/value heads"),
        (mlp_width, "MLP units"),
    ):
        if number % tensor:
            raise UserError(
                f"mesh.tensor {tensor}: does not divide the model's {number} {what}; give 1"
                + (f" or a divisor of {common}" if common > 1 else "")
            )
