"""The project's one reader and one writer of JSON lines.

A line ends at U+000A and nowhere else: U+2028, U+2029, U+0085 and the like may stand inside a text. They are written as
escapes, so that other readers, which cut lines there, take the files too.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import opening
from rewards.errors import UserError
from rewards.files import JSONObject, atomic_path
from rewards.opening import STANDARD_INPUT as STANDARD_INPUT

if TYPE_CHECKING:  # commands read lines, and their --help must not import NumPy
    from rewards.types import Prompt

_BOM = b"\xef\xbb\xbf"
# What some readers take for the end of a line, what a terminal obeys, and halves of surrogate pairs.
_ESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class LineError(ValueError):
    """A line that is no JSON: `str(error)` says what is wrong and the fix, `field` which field of it."""

    def __init__(self, message: str, field: str = "row"):
        super().__init__(message)
        self.field = field


def line(row: object) -> str:
    """One row as a line, its end included.

    Raises:
      ValueError: a number that is not finite.
    """
    return escaped(json.dumps(row, ensure_ascii=False, allow_nan=False)) + "\n"


def escaped(text: str) -> str:
    """JSON with everything that must not stand raw in a line written as an escape."""
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write(path: str | os.PathLike[str], rows: Iterable[object]) -> None:
    """Write a file whole or not at all, compressed where its name ends in .gz."""
    path = Path(path)
    with atomic_path(path) as temporary:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(temporary, "wt", encoding="utf-8", newline="\n") as file:
            file.writelines(map(line, rows))


def prompt_value(prompt: "Prompt") -> Any:
    """A prompt as rows hold it: text, or a list of messages."""
    if isinstance(prompt, str):
        return prompt
    from rewards.types import as_messages

    return as_messages(prompt)


def raw_lines(file: str | os.PathLike[str], longest: int = opening.LONGEST_LINE) -> Iterator[bytes]:
    """Lines of a file, a pipe or standard input, decompressed by content, not by name (a `.gz` that is plain text is
    read as text), without a byte order mark.

    Raises:
      UserError: as `opening.binary` and `opening.lines`, or damaged gzip.
    """
    number = 0
    try:
        # A pipe can be read once only, so its first bytes are peeked at.
        with opening.binary(file) as raw:
            stream = gzip.open(raw) if raw.peek(2).startswith(b"\x1f\x8b") else raw
            for text in opening.lines(stream, file, longest):
                number += 1
                yield text.removeprefix(_BOM) if number == 1 else text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{file}: damaged gzip after line {number} ({error}); the file is cut short or corrupt, "
            "copy or fetch it again"
        ) from None
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror or error}); check its permissions"
        ) from None


def read(file: str | os.PathLike[str]) -> Iterator[tuple[int, object]]:
    """(number of the line, its value) of every line that is not blank; a `LineError` as value where it is no JSON."""
    yield from parsed(raw_lines(file))


def parsed(lines: Iterable[bytes]) -> Iterator[tuple[int, object]]:
    """`read` of lines that are there already."""
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield number, parse(text)
            except LineError as error:
                yield number, error


def parse(text: bytes) -> Any:
    """The value of one line; raises LineError."""
    try:
        line = text.decode("utf-8")
        return (
            json.loads(line) if line.startswith("\ufeff") else _DECODER.decode(line)
        )  # the former says what it is
    except UnicodeDecodeError as error:
        raise LineError(
            f"is not UTF-8 (byte {error.start}: {error.reason}); convert the file to UTF-8"
        ) from None
    except LineError:
        raise
    except (ValueError, RecursionError) as error:  # not only JSONDecodeError: an integer of 4301 digits
        raise LineError(f"is not JSON ({error}); one JSON object a line is expected") from None


def parse_array(file: str | os.PathLike[str], lines: Iterable[bytes]) -> list[Any]:
    """The value of a file that is one JSON array."""
    text = bytearray()
    for one in lines:
        text += one
        if len(text) > opening.MOST_TEXT:
            raise UserError(
                f"{file}: an array of more than {opening.MOST_TEXT:,} bytes; write it as JSON lines"
            )
    try:
        line = text.decode("utf-8")
        return (
            json.loads(line) if line.startswith("\ufeff") else _DECODER.decode(line)
        )  # the former says what it is
    except (ValueError, RecursionError) as error:
        field = f"field {error.field!r} " if isinstance(error, LineError) else ""
        raise UserError(f"{file}: not valid JSON ({field}{error}); restore or recreate the file") from None


def _object(pairs: list[tuple[str, object]]) -> JSONObject:
    """A JSON object, refusing a key that stands in it twice: Python would take the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise LineError("is given twice; remove one", next(name for name in names if names.count(name) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # `json.loads` would make one a line


def rows(file: str | os.PathLike[str], fix: str = "restore or recreate the file") -> list[JSONObject]:
    """All rows of a file of objects.

    Raises:
      UserError: the file cannot be read, or the first line that is no object.
    """
    found = []
    for number, row in read(file):
        if isinstance(row, LineError):
            raise UserError(f"{file}: row {number}: {row}") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}: row {number}: is no object with named fields; {fix}")
        found.append(row)
    return found


def whole_lines(path: Path) -> list[tuple[int, object]]:
    """`read` of a file that a process appends to: without its last line where a kill tore that."""
    if not path.is_file():
        return []
    found = list(read(path))
    torn = bool(found) and (isinstance(found[-1][1], LineError) or not path.read_bytes().endswith(b"\n"))
    return found[:-1] if torn else found
