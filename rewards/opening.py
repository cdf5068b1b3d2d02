"""Files that people name, opened for reading in one place: a regular file, or a pipe where it is read once from its start."""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Protocol, TypeVar

from rewards.errors import UserError
from rewards.paths import expanded

T = TypeVar("T", bound=str | bytes, covariant=True)
STANDARD_INPUT = ("-", "/dev/stdin")
LONGEST_LINE = 2**26  # bytes; a device, or a file of zeros, is one line without end
MOST_TEXT = 2**30  # bytes of a file that is read as a whole
_WRITER_SECONDS = 3.0  # a named pipe is waited for until somebody writes
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a pipe"),
)


class _Lines(Protocol[T]):
    def readline(self, size: int, /) -> T: ...


def binary(file: str | os.PathLike[str], *, pipes: bool = True, what: str = "file") -> BufferedReader:
    """Open for reading, buffered: a regular file, standard input (`-`), or a pipe that somebody writes into.

    Args:
      pipes: whether pipes and standard input will do; not for what is read twice or from the middle.
    Raises:
      UserError: there is no such file, it cannot be read, or it is something else (folder, device, socket).
    """
    with _said(file, what):
        if pipes and str(file) in STANDARD_INPUT:
            with contextlib.ExitStack() as held:
                stream = held.enter_context(os.fdopen(os.dup(0), "rb"))
                _check_kind(file, os.fstat(stream.fileno()), pipes=True, standard=True)
                held.pop_all()
            return stream
        path = Path(expanded(str(file)))
        _check_kind(file, path.stat(), pipes=pipes)  # before it is opened: opening a device may do something
        handle = _open_pipe(path) if path.is_fifo() else os.open(path, os.O_RDONLY)
        return os.fdopen(handle, "rb")


def text(
    file: str | os.PathLike[str], *, most: int = MOST_TEXT, pipes: bool = False, what: str = "file"
) -> str:
    """The whole text of a file of at most `most` bytes.

    Raises:
      UserError: as `binary`; or it is larger than any such file, or no UTF-8. `what` it should be is in the message.
    """
    with binary(file, pipes=pipes, what=what) as stream, _said(file):
        raw = stream.read(most + 1)
    if len(raw) > most:
        raise UserError(f"{file}: more than {most:,} bytes, which no {what} has; name another file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: not UTF-8 text (byte {error.start}: {error.reason}); convert the {what} to UTF-8"
        ) from None


def check(file: str | os.PathLike[str], *, pipes: bool = True) -> Path:
    """The path of a file that is there and of a kind that can be read, for what opens it later or by itself.

    Raises:
      UserError: it is not there, or something else.
    """
    with _said(file):
        path = Path(expanded(str(file)))
        _check_kind(file, path.stat(), pipes=pipes)
    return path


def lines(stream: _Lines[T], file: str | os.PathLike[str], longest: int = LONGEST_LINE) -> Iterator[T]:
    """Lines with their ends, each of at most `longest` bytes (or characters).

    Raises:
      UserError: a longer one, by number.
    """
    number = 0
    while line := stream.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise UserError(
                f"{file}: line {number}: longer than {longest:,} bytes; one row a line is expected"
            )
        yield line


def _check_kind(
    file: str | os.PathLike[str], found: os.stat_result, *, pipes: bool, standard: bool = False
) -> None:
    kind = next((name for test, name in _KINDS if test(found.st_mode)), None)
    if kind is None or (kind == "a pipe" and pipes):
        return
    if (
        standard
        and stat.S_ISCHR(found.st_mode)
        and (os.isatty(0) or found.st_rdev == os.stat(os.devnull).st_rdev)
    ):
        return  # somebody types, or there is none
    if standard and kind == "a socket":
        return  # how some shells and services connect programs
    raise UserError(f"{file}: is {kind}, not a file; name a file that holds what is to be read")


def _open_pipe(path: Path) -> int:
    """Open a named pipe as soon as somebody writes into it; opening it waits, so another thread does."""
    opened: list[int] = []
    thread = threading.Thread(target=lambda: opened.append(os.open(path, os.O_RDONLY)), daemon=True)
    thread.start()
    thread.join(_WRITER_SECONDS)
    if opened:
        return opened[0]
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # wakes the thread
    raise UserError(
        f"{path}: a pipe that nobody writes into; start what writes into it first, or name a file"
    )


@contextlib.contextmanager
def _said(file: str | os.PathLike[str], what: str = "file") -> Iterator[None]:
    """What the system says about a path, in one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file}: no such {what}; check the path") from None
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror or error}); check what it is and its permissions"
        ) from None
    except ValueError as error:
        raise UserError(f"{str(file)!r}: no path ({error}); name a file") from None
