"""Every number of every configuration has a range that stands in its record, and nothing outside it gets in."""

import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import annotated_types
from pydantic.fields import FieldInfo

from rewards.errors import UserError
from rewards.methods import MODELS, estimator
from rlhf.run.config import load
from rlhf.run.config.describe import KINDS, schema_of
from rlhf.run.config.load import build, field_type, key_paths, record_of

ATTACKS = (-1, 0, 1e300, 10**18, math.nan, math.inf, -(10**18), 1e-300, 2**63)


def numbers(annotation: Any, limits: tuple[Any, ...] = ()) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """(int or float, its limits) of everything in an annotation that takes a number."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        base, *marks = typing.get_args(annotation)
        found = tuple(
            part for mark in marks for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])
        )
        yield from numbers(base, (*limits, *found))
    elif origin in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from numbers(option, limits)
    elif origin is tuple:  # limits of a list are of its length
        yield from numbers(typing.get_args(annotation)[0])
    elif annotation in (int, float):
        yield annotation, limits


def bounds(limits: tuple[Any, ...]) -> tuple[float, float]:
    """The lowest and the highest number that some limits allow; not finite where they do not say."""
    low, high = -math.inf, math.inf
    for limit in limits:
        if isinstance(limit, annotated_types.Ge | annotated_types.Gt):
            low = limit.ge if isinstance(limit, annotated_types.Ge) else limit.gt
        if isinstance(limit, annotated_types.Le | annotated_types.Lt):
            high = limit.le if isinstance(limit, annotated_types.Le) else limit.lt
    return low, high


def keys() -> Iterator[tuple[str, tuple[str, ...], type, float, float, bool]]:
    for kind in KINDS:
        schema = schema_of(kind)
        for path in key_paths(schema):
            parent = record_of(field_type(schema, path[:-1])) if path[:-1] else schema
            info = parent.__pydantic_fields__[path[-1]]
            annotation = typing.get_type_hints(parent, include_extras=True)[path[-1]]
            for number, limits in numbers(annotation, tuple(info.metadata)):
                yield kind, path, number, *bounds(limits), "tuple" in str(annotation)


KEYS = list(keys())


def test_every_number_of_a_configuration_has_a_lowest_and_a_highest_value():
    assert len(KEYS) > 150
    without = [
        (kind, ".".join(path))
        for kind, path, _, low, high, _ in KEYS
        if not math.isfinite(low) or not math.isfinite(high)
    ]
    assert not without


def test_every_number_of_a_reward_model_has_a_lowest_and_a_highest_value():
    without = []
    for name in MODELS:
        model = estimator(name)
        for field, info in model.__pydantic_fields__.items():
            annotation = typing.get_type_hints(model, include_extras=True)[field]
            for _, limits in numbers(annotation, tuple(info.metadata)):
                if not all(map(math.isfinite, bounds(limits))):
                    without.append((name, field))
    assert not without


def test_what_lies_outside_is_refused_in_one_line_that_names_the_key(monkeypatch):
    """Every key, every attack: taken only where the record's own range holds it."""
    monkeypatch.setattr(load, "_MAX_LISTED", 1000)  # the keys that are missing here are complained of, too
    wrong = []
    for kind, path, number, low, high, listed in KEYS:
        for value in ATTACKS:
            inside = low <= value <= high and not (isinstance(value, float) and number is int)
            values: dict[str, Any] = {}
            section = values
            for name in path[:-1]:
                inner: Any = {}
                several = "tuple" in str(field_type(schema_of(kind), path[: path.index(name) + 1]))
                section[name] = [inner] if several else inner
                section = inner
            section[path[-1]] = [value] if listed else value
            try:
                build(values, schema_of(kind), "a.yaml")
                said = ""
            except UserError as error:
                said = str(error)
            named = ".".join(path) in said.replace(".0.", ".")
            if not inside and not named:
                wrong.append((kind, ".".join(path), value, said))
            assert "\n" not in said
    assert not wrong
