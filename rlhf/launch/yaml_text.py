"""Manifests as YAML that versions 1.1 and 1.2 read alike: texts in quotes where a reader might see something else in them."""

import io
import re
from collections.abc import Mapping

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

_PLAIN = re.compile(r"[A-Za-z][\w./-]*\w")
_WORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null", "y", "n", "nan", "inf"})


def yaml_text(value: object) -> str:
    """Nested plain values as a document; lines of shell stay lines, None is left out of sections."""
    yaml = YAML()
    yaml.width = 2**31
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(_styled(value), out)
    return out.getvalue()


def _styled(value: object) -> object:
    if isinstance(value, Mapping):
        return {_styled(key): _styled(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_styled(item) for item in value]
    if not isinstance(value, str) or (_PLAIN.fullmatch(value) and value.lower() not in _WORDS):
        return value
    lines = value.split("\n")
    if (
        len(lines) > 1
        and not lines[-1]
        and lines[0][:1].strip()
        and all(line.isprintable() for line in lines)
    ):
        return LiteralScalarString(value)
    return DoubleQuotedScalarString(value)
