"""Paths as people write them, and references from one run to another that survive a move of both."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rewards.errors import UserError

_LEVELS = 4  # how far up, and how many names deep, a moved run is looked for


def expanded(text: str) -> str:
    """A path with `~` as the home folder; any other text is left alone.

    Raises:
      UserError: it holds a NUL byte, which no path has.
    """
    if "\0" in text:
        raise UserError(f"{text!r}: holds a NUL byte; remove it")
    if text != "~" and not text.startswith("~/"):
        return text
    return str(Path(text).expanduser())


def relative(target: str | os.PathLike[str], directory: str | os.PathLike[str]) -> str:
    """How `target` is reached from a run's directory."""
    return os.path.relpath(Path(target).resolve(), Path(directory).resolve())


def find(
    stored: str, nearby: str | None, directory: str | os.PathLike[str], right: Callable[[Path], bool]
) -> str:
    """Where something is that a run refers to.

    Args:
      stored: the absolute path at the time of the run; returned when nothing is right.
      nearby: the path from the run's directory, None for runs that recorded none.
      directory: of the run, today.
      right: whether a path holds what was referred to, by its hash.
    """
    run = Path(directory).resolve()
    for path in _candidates(Path(stored), nearby, run):
        if path.exists() and right(path):
            return str(path)
    return stored


def _candidates(stored: Path, nearby: str | None, run: Path) -> Iterator[Path]:
    if nearby is not None:
        yield Path(os.path.normpath(run / nearby))
    yield stored
    # Runs that recorded no way: beside them, as far as the folder that was moved as a whole.
    for above in list(run.parents)[:_LEVELS]:
        for names in range(min(_LEVELS, len(stored.parts) - 1), 0, -1):
            yield above / Path(*stored.parts[-names:])
