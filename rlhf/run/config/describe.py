"""The reference of configuration keys, taken from the schemas themselves."""

import dataclasses
import importlib
import inspect
import re
import types
import typing
from collections.abc import Sequence
from typing import Literal

from pydantic.dataclasses import is_pydantic_dataclass

from rewards.errors import UserError
from rlhf.run.config.common import RunConfig
from rlhf.run.config.load import field_type, key_paths, record_of, to_dict

# By name: this room lies under those that hold the records.
KINDS = {
    "rewards": "rlhf.phi.config:RewardsConfig",
    "reward": "rlhf.train.reward.config:RewardTrainConfig",
    "sft": "rlhf.train.config:SFTConfig",
    "dpo": "rlhf.train.config:DPOConfig",
    "ppo": "rlhf.train.rl.config:PPOConfig",
    "grpo": "rlhf.train.rl.config:GRPOConfig",
    "evaluate": "rlhf.evaluation.config:EvaluateConfig",
    "outputs": "rlhf.evaluation.outputs.config:OutputsConfig",
    "sweep": "rlhf.sweep.config:SweepConfig",
}


def schema_of(kind: str) -> type[RunConfig]:
    """The schema class of a kind named on the command line."""
    if kind not in KINDS:
        raise UserError(f"{kind}: no such kind of configuration; known: {', '.join(KINDS)}")
    module, _, record = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), record)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One key: dotted path, type in words, default (None with `required`), limits, what it does."""

    key: str
    type: str
    required: bool
    default: object
    limits: str
    doc: str


def describe(schema: type) -> list[Entry]:
    """Every key that takes a value, in order."""
    entries = []
    for path in key_paths(schema):
        annotation = field_type(schema, path)
        if "section" in (words := _in_words(annotation)):
            continue
        parent = record_of(field_type(schema, path[:-1])) if path[:-1] else schema
        assert parent is not None and is_pydantic_dataclass(parent), "a key stands in a record"
        info = parent.__pydantic_fields__[path[-1]]
        default = info.get_default(call_default_factory=True)
        entries.append(
            Entry(
                key=".".join(path),
                type=words,
                required=info.is_required(),
                default=None if info.is_required() else _plain(default),
                limits=_limits(info.metadata),
                doc=info.description or _from_docstring(parent, path[-1]),
            )
        )
    return entries


def _from_docstring(record: type, name: str) -> str:
    """What the `Attributes:` of a record, or of what it extends, says about a field (`name: text` or
    `name, other: text`)."""
    for part in record.__mro__:
        section = inspect.cleandoc(part.__doc__ or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section, flags=re.MULTILINE):
            if name in names.split(", "):
                return " ".join(text.split())
    return ""


def _plain(value: object) -> object:
    return (
        to_dict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else list(value)
        if isinstance(value, tuple)
        else value
    )


def _in_words(annotation: object) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(str(option) for option in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_in_words(option) for option in args)
    if origin is dict:
        return "keys and values"
    if origin is tuple:
        return f"list of {_in_words(args[0])}"
    if annotation is type(None):
        return "null"
    if dataclasses.is_dataclass(annotation):
        return "section"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true/false"}
    assert isinstance(annotation, type), "what is left is a class"
    return names.get(annotation.__name__, str(annotation.__name__))


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


def _limits(metadata: Sequence[object]) -> str:
    found = [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for name, sign in _SIGNS.items()
        if hasattr(item, name)
    ]
    return ", ".join(limit for limit in found if limit != "length ≥ 1")
