"""What the import hook in conftest.py checks with: beartype, for the annotations that carry a shape."""

import types
import typing
from collections.abc import Callable

import jax
import jaxtyping
import numpy as np
from beartype import beartype


def checked(made: Callable) -> Callable:
    """`made`, refusing arguments and results whose annotated shape or kind of number is another.

    Where an array lies is left to the static checker: compiled functions take NumPy's as well as JAX's.
    """
    if not isinstance(made, type):
        hints = getattr(made, "__annotations__", {})
        made.__annotations__ = {name: _shapes_of(hint) for name, hint in hints.items()}
    return beartype(made)


def _shapes_of(hint: object) -> object:
    """The part of an annotation that says shapes; `object` where it says none."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        both = hint.array_type in (jax.Array, np.ndarray)
        return hint.dtype[jax.Array | np.ndarray, hint.dim_str] if both else hint
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        shapes = [_shapes_of(part) for part in parts]
        if all(shape is object for shape in shapes):
            return object
        # Beside arrays stand plain numbers and None; where a float may stand, so may an int (PEP 484).
        plain = [part if shape is object else shape for part, shape in zip(parts, shapes, strict=True)]
        return typing.Union[*plain, int] if float in parts else typing.Union[tuple(plain)]  # noqa: UP007
    if origin is tuple and Ellipsis not in parts:
        return tuple[tuple(map(_shapes_of, parts))]
    return object
