"""`record`: one frozen class that is a section of YAML, an argument in Python and an argument of compiled functions.

    @record
    class KLConfig:
        coef: float = Field(gt=0, description="β, …")        # data: another number compiles nothing
        target: float | None = Field(None, gt=0)             # data; null is "no limit" and enters as inf
        place: Literal["reward", "loss"] = "reward"          # static: another word compiles again

What is data follows from the type of a field: numbers (`float`, `float | None`, `Count`) and other records. Everything
else (words, truth values, other integers, lists) is static: it fixes shapes or chooses what is computed. pydantic checks
types and limits where a record is made, and nowhere else.

`traced` is the one door into compiled code. A Python number in there would be weakly typed, and a second program would be
compiled for it.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Annotated, Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from rewards.files import JSONObject

T = TypeVar("T")


class _Varies:
    """Marks an integer that is data."""


Count = Annotated[int, _Varies()]
"""An integer that compiled code reads as a number, such as a number of steps: another one compiles nothing."""

_NUMBERS: dict[type, tuple[str, ...]] = {}  # of every record: its fields that are numbers …
_RECORDS: dict[type, tuple[str, ...]] = {}  # … and those that are records


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, Field))
def record(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only pydantic dataclass that knows no other keys, and a pytree of its numbers."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)
    made: Any = dataclass(frozen=True, kw_only=True, config=config)(cls)
    hints = typing.get_type_hints(made, include_extras=True)
    fields = [field.name for field in dataclasses.fields(made)]
    _NUMBERS[made] = tuple(name for name in fields if _is_number(hints[name]))
    _RECORDS[made] = tuple(name for name in fields if _is_record(hints[name]))
    data = (*_NUMBERS[made], *_RECORDS[made])
    static = tuple(name for name in fields if name not in data)
    keys = [GetAttrKey(name) for name in data]

    def flatten(value: T) -> tuple[tuple[object, ...], tuple[object, ...]]:
        return tuple(getattr(value, name) for name in data), tuple(getattr(value, name) for name in static)

    def flatten_with_keys(value: T) -> tuple[tuple[tuple[Hashable, object], ...], tuple[object, ...]]:
        children, words = flatten(value)
        return tuple(zip(keys, children, strict=True)), words

    def unflatten(words: tuple[object, ...], children: Iterable[object]) -> T:
        return _made(made, dict(zip((*static, *data), (*words, *children), strict=True)))

    # Not `register_dataclass`: it rebuilds through the constructor, where pydantic would refuse arrays, tracers and
    # whatever else JAX puts in the place of a leaf.
    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def traced(settings: T) -> T:
    """The record with its numbers as float32 arrays, as every compiled function takes it; null becomes inf.

    A record that is null stays null: that there is none decides what is compiled.
    """
    values = dict(vars(settings))
    for name in _NUMBERS[type(settings)]:
        values[name] = jnp.float32(jnp.inf if values[name] is None else values[name])
    for name in _RECORDS[type(settings)]:
        values[name] = None if values[name] is None else traced(values[name])
    return _made(type(settings), values)


def numbers(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of a record, and of the records in it, that are data."""
    yield from (prefix + name for name in _NUMBERS[cls])
    hints = typing.get_type_hints(cls)
    for name in _RECORDS[cls]:
        for one in _options(hints[name]):
            yield from numbers(typing.cast(type, one), f"{prefix}{name}.")


def _made(cls: type[T], values: JSONObject) -> T:
    """A record that holds these values, unchecked."""
    made = object.__new__(cls)
    made.__dict__.update(values)
    return made


def _options(hint: object) -> tuple[object, ...]:
    """The members of a union but None; of anything else itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(one for one in typing.get_args(hint) if one is not types.NoneType) if union else (hint,)


def _is_number(hint: object) -> bool:
    def varies(one: object) -> bool:
        if typing.get_origin(one) is Annotated:
            base, *marks = typing.get_args(one)
            return varies(base) or any(isinstance(mark, _Varies) for mark in marks)
        return one is float

    return all(varies(one) for one in _options(hint))


def _is_record(hint: object) -> bool:
    return all(one in _NUMBERS for one in _options(hint) if isinstance(one, Callable))
