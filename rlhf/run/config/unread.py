"""Keys that the choices of their own configuration never read, such as `tune.lora_rank` with `tune.mode: full`.

A record says by `unread()` which of its keys the choices in it leave without an effect; here that is compared with what
somebody has written. A key at its default counts for nothing: resolved configurations write every key out.
"""

import logging
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic.fields import FieldInfo

from rewards.errors import UserError
from rlhf.run.config.common import RunConfig
from rlhf.run.config.document import Key

_LOG = logging.getLogger("chorus")
_MAX_LISTED = 3


class Unread(NamedTuple):
    """Keys without an effect under a choice; dotted, from the record that says so.

    Attributes:
      keys: keys or whole sections. choice: the key that decides. says: what it says, in words.
    """

    keys: Sequence[str]
    choice: str
    says: str


def check(config: RunConfig, sources: dict[Key, str], command_line: str) -> None:
    """Refuse keys on the command line that nothing reads; those in a file, which may serve several choices, get a note.

    Args:
      sources: where every key was written. command_line: what `sources` calls the command line.
    Raises:
      UserError: keys, places and the choice that does not read them.
    """
    refused = []
    for path, choice, says in _unread(config):
        place, name = _source(path, sources), ".".join(path)
        if place is None:
            continue
        if place != command_line:
            _LOG.warning(f"note: {name} [{place}] is not read with {says}")
        else:
            refused.append(f"{name} [{place}]: not read with {says}; remove it or change {'.'.join(choice)}")
    if refused:
        more = f" (and {len(refused) - _MAX_LISTED} more)" if len(refused) > _MAX_LISTED else ""
        raise UserError("; ".join(refused[:_MAX_LISTED]) + more)


def _source(path: Key, sources: dict[Key, str]) -> str | None:
    return next((sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in sources), None)


def _unread(record: object, prefix: Key = ()) -> Iterator[tuple[Key, Key, str]]:
    """(key, the choice that does not read it, what that says) of every key that is not at its default."""
    said: Callable[[], Iterable[Unread]] = getattr(record, "unread", tuple)
    for keys, choice, says in said():
        for key in keys:
            for path in _changed(record, tuple(key.split("."))):
                yield (*prefix, *path), (*prefix, *choice.split(".")), says
    for name in _fields(record):
        yield from _unread(getattr(record, name), (*prefix, name))


def _fields(record: object) -> Mapping[str, FieldInfo]:
    """The keys of a section; of a plain value none."""
    return getattr(type(record), "__pydantic_fields__", {})


def _changed(record: object, path: Key) -> Iterator[Key]:
    """The keys at or below `path` that differ from their defaults."""
    name, rest = path[0], path[1:]
    value, info = getattr(record, name), _fields(record)[name]
    if _fields(value):
        names = [rest] if rest else [(inner,) for inner in _fields(value)]
        for below in names:
            for found in _changed(value, typing.cast(Key, below)):
                yield (name, *found)
    elif value != info.get_default(call_default_factory=True):
        yield (name,)
