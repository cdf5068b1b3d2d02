"""The project's one reader and writer of YAML: version 1.2 with the types of its core schema, and nothing else.

`yes`, `010`, `1:30` and `2026-01-01` are no flag, octal number, minutes or date here, and no tag makes an object.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from rewards.errors import UserError
from rewards.files import JSONObject

Key = tuple[str, ...]
_MAX_DEPTH = 50
_MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 100_000  # with every alias written out, so that a few lines cannot grow to gigabytes
_CORE, _MERGE = "tag:yaml.org,2002:", "<<"
# YAML 1.2.2, section 10.3.2: how a plain scalar reads. What no row matches is text. By hand because
# ruamel.yaml's own rows for 1.2 also take 0b1, 1_000 and dates.
_ROWS: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    ("null", r"null|Null|NULL|~|", lambda text: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", lambda text: text[0] in "tT"),
    ("int", r"[-+]?[0-9]+", int),
    ("int", r"0o[0-7]+", lambda text: int(text[2:], 8)),
    ("int", r"0x[0-9a-fA-F]+", lambda text: int(text[2:], 16)),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", lambda text: float(text.replace(".", "", 1))),
)
_PATTERNS = [(tag, re.compile(pattern), read) for tag, pattern, read in _ROWS]
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _CoreSchema(VersionedResolver):
    """ruamel.yaml's resolver with the rows above, for reading and for the quotes that writing needs."""

    @property
    def versioned_resolver(self) -> dict[str, object]:
        return {}  # no row by first character

    def resolve(self, kind: type[Node], value: str, implicit: Sequence[bool]) -> object:
        if kind is ScalarNode and implicit[0]:
            tag = next((tag for tag, pattern, _ in _PATTERNS if pattern.fullmatch(value)), "str")
            return type(self.DEFAULT_SCALAR_TAG)(suffix=_CORE + tag)
        return super().resolve(kind, value, implicit)


class _Quoting(SafeRepresenter):
    """ruamel.yaml's representer, with quotes around text that would not read back without: `<<`, a beginning with : or ?."""

    def represent_str(self, data: str) -> ScalarNode:
        quoted = data == _MERGE or data.startswith((":", "?"))
        return self.represent_scalar(_CORE + "str", data, style="'" if quoted else None)


_Quoting.add_representer(str, _Quoting.represent_str)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _CoreSchema
    yaml.Representer = _Quoting
    yaml.max_depth = _MAX_DEPTH
    return yaml


def parse(text: str, source: str) -> tuple[object, dict[Key, int]]:
    """Read one document.

    Args:
      text: the document.
      source: what complaints name, with the line behind it unless it ends in "]".
    Returns:
      The value (sections as dicts with text keys), and the line of every key.
    Raises:
      UserError: no YAML, a key given twice, a tag or a control character, or a document that is too large.
    """
    _check_characters(text, source)
    try:
        node = _yaml().compose(io.StringIO(text))
        if node is None:
            return None, {}
        _count(node, source, {})
        lines = dict(_key_lines(node, (), source))
        return _value(node, source), lines
    except (YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = (getattr(error, "problem", None) or "cannot be read").split("\n")[0]
        if str(problem).startswith("maximum depth"):
            problem = f"more than {_MAX_DEPTH} levels"
        _refuse(
            source,
            mark.line + 1 if mark is not None else None,
            f"not valid YAML ({problem}); check indentation, quotes and colons",
        )


def parse_value(text: str, source: str) -> object:
    """Read the value of an override: all of `text`, in which `#` and `: ` mean nothing unless it is written as a
    list, a section or in quotes."""
    _check_characters(text, source)
    text = text.strip()
    if text[:1] not in ("[", "{", '"', "'"):
        return _scalar(text, source)
    value, _ = parse(text, source)
    end = _yaml().compose(io.StringIO(text)).end_mark.index
    if end < len(text):
        rest = text[end:].strip()
        _refuse(source, None, f"{rest!r} stands behind the value; put all of it in quotes, or take it away")
    return value


def dump(value: object, *, flow: bool = False) -> str:
    """Plain values as YAML that `parse` reads back equal; `flow`: in one line, without the line's end."""
    yaml = _yaml()
    yaml.default_flow_style = flow
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    # Escaped rather than raw Unicode: some of it (U+0085) reads as a line break.
    yaml.allow_unicode = False
    yaml.width = 2**31  # never folded: ruamel.yaml loses or adds blanks where it folds escaped text
    out = io.StringIO()
    yaml.dump(value, out)
    text = out.getvalue()
    return text.removesuffix("...\n").rstrip("\n") if flow else text


def _check_characters(text: str, source: str) -> None:
    if len(text) > _MAX_CHARACTERS:
        _refuse(source, None, f"{len(text)} characters; a configuration has at most {_MAX_CHARACTERS}")
    found = _NOT_PRINTABLE.search(text.removeprefix("\ufeff"))
    if found:
        line = text.count("\n", 0, found.start()) + 1
        _refuse(source, line, f"holds the control character U+{ord(found[0]):04X}; remove it, or write it as an "
                'escape in double quotes ("\\x07")')  # fmt: skip


def _refuse(source: str, line: int | None, message: str) -> NoReturn:
    place = source if line is None or source.endswith("]") else f"{source}:{line}"
    raise UserError(f"{place}: {message}") from None


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, SequenceNode):
        yield from node.value
    elif isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair


def _count(node: Node, source: str, known: dict[int, int]) -> int:
    """Values below `node` with aliases written out; refuses one that holds itself and more than the limit."""
    if id(node) not in known:
        known[id(node)] = -1  # being counted
        total = 1
        for child in _children(node):
            below = _count(child, source, known)
            if below < 0:
                _refuse(
                    source, child.start_mark.line + 1, "an alias (*) inside its own anchor (&); write it out"
                )
            total += below
        if total > _MAX_VALUES:
            _refuse(
                source, node.start_mark.line + 1, f"more than {_MAX_VALUES} values; use fewer aliases (*)"
            )
        known[id(node)] = total
    return known[id(node)]


def _key_lines(node: Node, path: Key, source: str) -> Iterator[tuple[Key, int]]:
    if isinstance(node, SequenceNode):
        for position, entry in enumerate(node.value):
            if isinstance(entry, MappingNode):
                yield (*path, str(position)), entry.start_mark.line + 1
                yield from _key_lines(entry, (*path, str(position)), source)
    if not isinstance(node, MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name, line = _name(key_node, source), key_node.start_mark.line + 1
        if name in seen:
            dotted = ".".join((*path, name))
            raise UserError(
                f"{dotted} [{source}:{line}]: key given twice (first in line {seen[name]}); remove one"
            )
        seen[name] = line
        yield (*path, name), line
        yield from _key_lines(value_node, (*path, name), source)


def _name(node: Node, source: str) -> str:
    if not isinstance(node, ScalarNode):
        _refuse(source, node.start_mark.line + 1, "a key is a word, not a list or a section")
    return node.value


def _value(node: Node, source: str) -> object:
    tag = str(node.tag)
    kind = tag.removeprefix(_CORE)
    if isinstance(node, SequenceNode) and kind == "seq":
        return [_value(entry, source) for entry in node.value]
    if isinstance(node, MappingNode) and kind == "map":
        values = {_name(key, source): _value(value, source) for key, value in node.value}
        merges = any(key.value == _MERGE and key.style is None for key, _ in node.value)
        return _merged(values) if merges else values
    if isinstance(node, ScalarNode) and kind == "str":
        return node.value
    if isinstance(node, ScalarNode):
        for name, pattern, read in _PATTERNS:
            if name == kind and pattern.fullmatch(node.value):
                return read(node.value)
    _refuse(source, node.start_mark.line + 1,
            f"not valid YAML (the tag {tag.replace(_CORE, '!!')} is not read here); write the plain value")  # fmt: skip


def _merged(values: JSONObject) -> JSONObject:
    """`<<: *anchor`: the keys of the anchored sections, below those written here."""
    sections = values.pop(_MERGE)
    merged: JSONObject = {}
    for section in reversed(sections if isinstance(sections, list) else [sections]):
        if not isinstance(section, dict):
            return {_MERGE: sections} | values  # refused as an unknown key
        merged |= section
    return merged | values


def _scalar(text: str, source: str) -> object:
    try:
        return next((read(text) for _, pattern, read in _PATTERNS if pattern.fullmatch(text)), text)
    except ValueError:  # an integer of more digits than Python reads
        _refuse(source, None, f"a number of {len(text)} digits; write a smaller one")
