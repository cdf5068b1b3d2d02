"""YAML file + `key.sub=value` → frozen configuration; every complaint names key, place, value and fix."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from rewards import opening
from rewards.errors import UserError, nearest
from rewards.files import JSONObject
from rewards.names import no_name
from rewards.paths import expanded
from rewards.shown import without_credentials
from rlhf.run.config import unread
from rlhf.run.config.common import RunConfig
from rlhf.run.config.document import Key, dump, parse, parse_value

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound=RunConfig)
Record = TypeVar("Record")
TEXTS = frozenset({"question", "settings"})  # keys of what is read by models, not names
COMMAND_LINE = "command line"
_MAX_LISTED = 3
LARGEST = (
    1e30  # of a configuration's numbers: float32 holds it, and its products with other such numbers of use
)
SMALLEST = (
    1.1754943508222875e-38  # the least that float32 holds in full; below it a positive number may become 0
)
MOST_BYTES = 4_000_000  # of a configuration; `document.parse` counts characters and values
_MAX_DEPTH = 20  # names in the key of an override


def read(path: Path) -> tuple[JSONObject, dict[Key, str]]:
    """Read a configuration file → (mapping, source of every key as FILE:LINE)."""
    text = opening.text(path, most=MOST_BYTES, pipes=True, what="configuration file")
    value, lines = parse(text, path.name)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: a configuration is `key: value` lines, not a {type(value).__name__}")
    return value, {key: f"{path.name}:{line}" for key, line in lines.items()}


def apply_override(values: JSONObject, override: str, sources: dict[Key, str], schema: type) -> None:
    """Set one `key.sub=value` in `values`; a mapping as value replaces the whole section."""
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path) or len(path) > _MAX_DEPTH:
        raise UserError(
            f"{override[:200]!r} [{COMMAND_LINE}]: an override is key.sub=value, for example train.steps=100"
        )
    if not text.strip():
        raise UserError(f"{dotted} [{COMMAND_LINE}]: no value after '='; write {dotted}=null or {dotted}=''")
    value = parse_value(text, f"{dotted} [{COMMAND_LINE}]")
    for depth in range(1, len(path)):
        parent = field_type(schema, path[:depth])
        if parent is not None and record_of(parent) is None and typing.get_origin(parent) is not dict:
            raise UserError(
                f"{dotted} [{COMMAND_LINE}]: {'.'.join(path[:depth])} is a single value, not a section; "
                f"write {'.'.join(path[:depth])}=..."
            )
    section = values
    for name in path[:-1]:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[path[-1]] = value
    for key in [key for key in sources if key[: len(path)] == path]:
        del sources[key]
    sources[path] = COMMAND_LINE


def record_of(annotation: object) -> type | None:
    """The dataclass inside an annotation (`X`, `X | None`, a list of `X`), or None for a plain value."""
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple)
        else (annotation,)
    )
    return next(
        (option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None
    )


def field_type(schema: type, path: Sequence[str]) -> object:
    """Annotation of the field at `path`, or None when there is no such field.

    A section of a list is named by its position: ("encoder", "columns", "0", "name").
    """
    annotation: object = schema
    for name in path:
        record = record_of(annotation)
        if record is not None and typing.get_origin(annotation) is tuple and name.isdigit():
            annotation = record
            continue
        hints = typing.get_type_hints(record) if record is not None else {}
        if name not in hints:
            return None
        annotation = hints[name]
    return annotation


def key_paths(schema: type, prefix: Key = ()) -> Iterator[Key]:
    """Every key of a schema in order, sections before what they hold."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield (*prefix, field.name)
        record = record_of(hints[field.name])
        if record is not None:
            yield from key_paths(record, (*prefix, field.name))


def _unknown_keys(values: object, schema: type, path: Key = ()) -> Iterator[Key]:
    """Keys that the schema does not have, in file order."""
    record = record_of(field_type(schema, path))
    if record is not None and isinstance(values, list):
        for position, value in enumerate(values):
            yield from _unknown_keys(value, schema, (*path, str(position)))
    if record is None or not isinstance(values, dict):
        return
    names = {field.name for field in dataclasses.fields(record)}
    for name, value in values.items():
        if name not in names:
            yield (*path, name)
        else:
            yield from _unknown_keys(value, schema, (*path, name))


def _nearest(path: Key, schema: type) -> str:
    """The key that was probably meant: first among its siblings, then anywhere by its last name."""
    name = str(path[-1])
    if "." in name and field_type(schema, (*path[:-1], *name.split("."))) is not None:
        return f"unknown key; write it as a section: {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    record = record_of(field_type(schema, path[:-1]))
    siblings = [field.name for field in dataclasses.fields(record)] if record is not None else []
    if near := nearest(name, siblings):
        return f"unknown key; did you mean {near!r}?"
    by_name = {key[-1]: ".".join(key) for key in reversed(list(key_paths(schema)))}
    if near := nearest(name, by_name, alike=0.75):
        return f"unknown key; did you mean {by_name[near]!r}?"
    return f"unknown key; known here: {', '.join(siblings)}"


def _source(path: Key, sources: dict[Key, str], default: str) -> str:
    """Where the value at `path` was written: its own entry, else that of the nearest section around it."""
    return next((sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in sources), default)


def _shown(value: object) -> str:
    """A value as it is written in YAML, cut to a readable length."""
    text = (
        "a section" if isinstance(value, dict) else without_credentials(json.dumps(value, ensure_ascii=False))
    )
    return text if len(text) <= 60 else text[:57] + "..."


def _complaints(
    error: ValidationError, values: JSONObject, schema: type, sources: dict[Key, str], default: str
) -> list[str]:
    """One line for every key pydantic refuses; branches of a union are joined by 'or'."""
    reasons: dict[Key, list[str]] = {}
    shown: dict[Key, str] = {}
    for detail in error.errors(include_url=False):
        path: Key = ()
        for part in detail["loc"]:  # a location also names union branches and list positions: keep keys
            given = _lookup(values, path)
            own_name = isinstance(given, dict) and part in given  # of a table whose keys the user chooses
            if own_name or field_type(schema, (*path, str(part))) is not None:
                path = (*path, str(part))
        message = detail["msg"].removeprefix("Value error, ")
        message = message.replace("an object", "a section of keys").replace("a valid array", "a list")
        if message.startswith(("Input", "Field", "Tuple", "String", "List")):
            message = message[:1].lower() + message[1:]
        if message not in reasons.setdefault(path, []):
            reasons[path].append(message)
        if detail["type"] not in ("missing", "value_error"):
            shown[path] = f" (got {_shown(_lookup(values, path))})"
    missing = [
        path for path, messages in reasons.items() if [m.lower() for m in messages] == ["field required"]
    ]
    lines = []
    if len(missing) > 1 or any(record_of(field_type(schema, path)) for path in missing):
        keys = [".".join(key) for path in missing for key in _required(schema, path)]
        lines.append(f"[{default}]: missing: {', '.join(keys)}; chorus config describe says what they are")
        reasons = {path: messages for path, messages in reasons.items() if path not in missing}
    for path, messages in reasons.items():
        place = f"{'.'.join(path)} [{_source(path, sources, default)}]" if path else f"[{default}]"
        lines.append(f"{place}: {' or '.join(messages)}{shown.get(path, '')}")
    return lines


def _required(schema: type, path: Key) -> Iterator[Key]:
    """The keys that must be given where the key or section at `path` is missing."""
    parent = record_of(field_type(schema, path))
    if parent is None:
        yield path
        return
    for name, info in parent.__pydantic_fields__.items():
        if info.is_required():
            yield from _required(schema, (*path, name))
    if "steps" in parent.__pydantic_fields__:  # or epochs, so neither is required alone
        yield (*path, "steps (or epochs)")


def _lookup(values: object, path: Key) -> object:
    for name in path:
        if isinstance(values, list) and name.isdigit() and int(name) < len(values):
            values = values[int(name)]
        else:
            values = values.get(name) if isinstance(values, dict) else values
    return values


def _raise(lines: list[str]) -> typing.NoReturn:
    more = f" (and {len(lines) - _MAX_LISTED} more)" if len(lines) > _MAX_LISTED else ""
    raise UserError("; ".join(lines[:_MAX_LISTED]) + more)


def load(path: str | Path, overrides: Sequence[str], schema_class: type[T]) -> T:
    """Read a configuration.

    Args:
      path: YAML file.
      overrides: `key.sub=value`, values in YAML, applied in order after the file.
      schema_class: the record of a kind of run (`describe.schema_of`).
    Raises:
      UserError: an unknown, missing, mistyped or out-of-range key, with its path, place (file and line, or
        command line), value and the nearest right key; or a key that the choices made never read; several are listed in
        one line.
    """
    path = Path(path)
    values, sources = read(path)
    sources |= overridden(values, overrides, schema_class, sources)
    return made(values, schema_class, path.name, sources)


def overridden(
    values: JSONObject, overrides: Sequence[str], schema_class: type, sources: dict[Key, str] | None = None
) -> dict[Key, str]:
    """Set `key.sub=value` in `values`, in order; returns where every key was written."""
    sources = {} if sources is None else sources
    for override in overrides:
        apply_override(values, override, sources, schema_class)
    return sources


def made(values: JSONObject, schema_class: type[T], place: str, sources: dict[Key, str]) -> T:
    """`build`, and a refusal of what was written and is not read."""
    config = build(values, schema_class, place, sources)
    unread.check(config, sources, COMMAND_LINE)
    return config


def build(
    values: JSONObject, schema_class: type[Record], place: str, sources: dict[Key, str] | None = None
) -> Record:
    """Plain values → record; unknown keys are named like everything else.

    Args:
      place: what complaints name as the source of a key that `sources` does not hold.
    """
    sources, lines = sources or {}, []
    for key in _unknown_keys(values, schema_class):
        where = _source(tuple(map(str, key)), sources, place)
        lines.append(f"{'.'.join(map(str, key))} [{where}]: {_nearest(key, schema_class)}")
    if lines:
        _raise(lines)
    return validate(values, schema_class, sources, place)


def validate(values: JSONObject, schema_class: type[Record], sources: dict[Key, str], default: str) -> Record:
    """Build the record from plain values; strictly, so that "5" is no integer and true no number."""
    values = {key: _at_home(value) for key, value in values.items()}
    try:
        # Through JSON: strict mode takes lists for tuples and mappings for records only there.
        config = TypeAdapter(schema_class).validate_json(json.dumps(values), strict=True)
    except TypeError:
        _raise(
            [f"[{default}]: holds a value that is no text, number, list or section; remove YAML tags (!!...)"]
        )
    except ValidationError as error:
        _raise(_complaints(error, values, schema_class, sources, default))
    if lines := [
        f"{'.'.join(path)} [{_source(path, sources, default)}]: {problem} (got {_shown(value)})"
        for path, value in _leaves(values)
        if (problem := _no_name(path, value) if isinstance(value, str) else _out_of_range(value))
    ]:
        _raise(lines)
    return config


def _leaves(values: object, path: Key = ()) -> Iterator[tuple[Key, int | float | str]]:
    """Every number and text with the key that holds it, those of lists and of tables whose keys the user chooses included."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _leaves(value, (*path, str(name)))
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from _leaves(value, (*path, str(place)) if isinstance(value, dict) else path)
    elif isinstance(values, (int, float, str)) and not isinstance(values, bool):
        yield path, values


def _no_name(path: Key, value: str) -> str | None:
    """Why a text cannot be the name, path or choice that its key holds; a few keys hold texts of any kind."""
    if TEXTS & set(path):
        return None
    if without_credentials(value) != value:
        return "holds a user name or password of an address, which would be written to files; take it out"
    return no_name(value)


def _out_of_range(value: int | float) -> str | None:
    """Why no key can hold this number: compiled code counts with 32 bits, in which it would be infinite, zero or another."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if abs(value) > LARGEST:
        return f"too large a number; none here goes beyond {LARGEST:g}"
    if 0 < abs(value) < SMALLEST:
        return f"too close to 0; write 0 or at least {SMALLEST:g}"
    return None


def _at_home(values: object) -> object:
    """The values with `~/` at the beginning of a text as the home folder: such a text is a path."""
    if isinstance(values, dict):
        return {key: _at_home(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_at_home(value) for value in values]
    return expanded(values) if isinstance(values, str) else values


def to_dict(config: "DataclassInstance") -> JSONObject:
    """Resolved configuration as plain values (lists for tuples)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: "DataclassInstance") -> str:
    """Resolved configuration, every key written out; `load` gives back an equal record."""
    return dump(to_dict(config))
