"""Keyword arguments → the same frozen configuration that a YAML file gives."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.run.config.common import RunConfig
from rlhf.run.config.load import build, key_paths
from rlhf.run.directory import plain

Values = JSONObject
Config = TypeVar("Config", bound=RunConfig)


def configuration(
    schema: type[Config], call: str, defaults: Mapping[str, object], keys: Mapping[str, object]
) -> Config:
    """The configuration of a kind of run.

    Args:
      schema: its record. call: name of the function, for messages.
      defaults: dotted key → value; what `keys` says counts more.
      keys: a section as a dict (`loss={"kind": "dpo"}`), a dotted key (`**{"loss.kind": "dpo"}`), or the last name of a
        key where only one section has it (`learning_rate=1e-4`).
    Raises:
      UserError: an unknown, missing, mistyped or out-of-range key; the nearest right one is named.
    """
    values: Values = {}
    for key, value in defaults.items():
        _put(values, key.split("."), value)
    paths = [".".join(path) for path in key_paths(schema)]
    for key, value in keys.items():
        path = key if key in paths else _only(key, paths, call)
        _put(values, path.split("."), plain(value))
    return build(values, schema, call)


def _only(key: str, paths: list[str], call: str) -> str:
    found = [path for path in paths if path.rpartition(".")[2] == key]
    if len(found) == 1:
        return found[0]
    if found:
        sections = ", ".join(f"{path.replace('.', '={')}: …" + "}" * path.count(".") for path in found)
        raise UserError(f"{call}: {key!r} stands in several sections; say which: {sections}")
    names = list(dict.fromkeys([*paths, *(path.rpartition(".")[2] for path in paths)]))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(p for p in paths if '.' not in p)}"
    raise UserError(f"{call}: no such keyword {key!r}; {hint}")


def _put(values: Values, path: list[str], value: object) -> None:
    """Set a key; a section given as a dict is merged into what stands there."""
    for name in path[:-1]:
        values = values.setdefault(name, {})
    before = values.get(path[-1])
    if isinstance(value, dict) and isinstance(before, dict):
        for name, inner in value.items():
            _put(before, name.split("."), inner)
    else:
        values[path[-1]] = value
