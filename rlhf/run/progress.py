"""Progress on stderr: a bar on a terminal, plain lines elsewhere, never silence."""

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rewards.shown import printable
from rlhf.run import processes

T = TypeVar("T")

_LOG = logging.getLogger("chorus")
MINUTE = 60.0
PATIENCE = 5.0  # seconds of silence that need no explanation


class _Silent(io.StringIO):
    """Where a process prints that is not the one that speaks."""

    def write(self, s: str, /) -> int:
        return len(s)


class ProgressLine:
    """Report `done` of `total` pieces of work.

    On a terminal one bar is redrawn; otherwise a plain line is printed at the first update, then whenever
    `every_seconds` have passed, and at the end, so that a log file shows life without being flooded.

    Args:
      title: what is being done, for example `embed`.
      total: number of pieces.
      unit: name of a piece, for the plain lines.
      every_seconds: least time between plain lines; 0 prints every update.
      start: pieces done before this run (after a resume).
      stream: where to print; stderr when None.
    """

    open_lines = 0  # two bars would redraw the same line of a terminal

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = "step",
        every_seconds: float = 5.0,
        start: int = 0,
        stream: TextIO | None = None,
    ):
        self._title, self._total, self._unit, self._every = printable(title), total, unit, every_seconds
        self._stream = stream if stream is not None else sys.stderr
        self._done, self._printed_at, self._printed = start, -float("inf"), -1
        self._note = ""
        self._bar: Progress | None = None
        self._open = True
        ProgressLine.open_lines += 1
        if not processes.is_writer():
            self._stream = _Silent()
        elif self._stream.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(title, total=total, completed=start, note="")
            self._bar.start()

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, note: str = "") -> None:
        """Set the number of pieces done, with a short note such as the loss."""
        self._done, self._note = done, printable(note)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self._note)
        elif time.monotonic() - self._printed_at >= self._every:
            self._print()

    def close(self) -> None:
        ProgressLine.open_lines -= self._open
        self._open = False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._printed != self._done and self._printed >= 0:
            self._print()

    def _print(self) -> None:
        note = f": {self._note}" if self._note else ""
        print(f"{self._title} {self._unit} {self._done}/{self._total}{note}", file=self._stream, flush=True)
        self._printed_at, self._printed = time.monotonic(), self._done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is waited for, at once and then every MINUTE that it lasts, on the logger `chorus`."""
    over, begun = threading.Event(), time.monotonic()
    _LOG.info(f"{what} …")

    def speak() -> None:
        while not over.wait(MINUTE):
            _LOG.info(f"{what}: {time.monotonic() - begun:.0f} s so far")

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        over.set()
        speaker.join()


def watched(pieces: Sequence[T], title: str) -> Iterator[T]:
    """The pieces one by one; work that takes longer than `PATIENCE` gets a line of progress.

    Not where a line is open already, such as that of the training of which this work is a step.
    """
    begun, line = time.monotonic(), None
    try:
        for number, piece in enumerate(pieces):
            if line is None and not ProgressLine.open_lines and time.monotonic() - begun > PATIENCE:
                line = ProgressLine(title, len(pieces), unit="batch")
            if line is not None:
                line.update(number)
            yield piece
        if line is not None:
            line.update(len(pieces))
    finally:
        if line is not None:
            line.close()
