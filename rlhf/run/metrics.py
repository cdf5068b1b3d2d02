"""Metric writers: metrics.jsonl, trackers, console."""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rewards import hashed, jsonl
from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.run.progress import ProgressLine
from rlhf.run.trackers import Trackers

FILE = "metrics.jsonl"
_CONSOLE = 4
"""Numbers shown on the console when the caller names none."""


def read_metrics(directory: str | os.PathLike[str]) -> list[JSONObject]:
    """Lines of metrics.jsonl; a last line torn by a kill is left out, a damaged earlier one is an error."""
    path = Path(directory) / FILE
    rows = []
    for number, row in jsonl.whole_lines(path):
        try:
            row = hashed.checked_row(row)
            if not isinstance(row.get("step"), int):
                raise ValueError("no step")
        except ValueError:
            raise UserError(
                f"{path}: line {number}: not a metric record, or not as it was written; remove the line or choose "
                "another output_dir"
            ) from None
        rows.append(row)
    return rows


class MetricWriter:
    """Write metrics of a run to metrics.jsonl, its trackers and the console.

    A run that was killed and resumed at checkpoint s must leave the file an uninterrupted run leaves, apart
    from wall-clock numbers (names under `perf/` or ending in `_seconds`): lines after `start_step` are
    dropped here, and the trainer writes and `flush`es the metrics of step s before it saves checkpoint s.

    Args:
      directory: run directory.
      start_step: step that was restored; 0 for a fresh run.
      num_steps: last step, for the console.
      title: name shown on the console.
      shown: metrics shown on the console, in order; the first few of a line when empty.
      track: names of trackers (`rlhf.run.trackers`).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        start_step: int = 0,
        *,
        num_steps: int = 0,
        title: str = "train",
        shown: tuple[str, ...] = (),
        track: tuple[str, ...] = ("tensorboard",),
    ):
        directory = Path(directory)
        rows = read_metrics(directory)
        kept = [row for row in rows if row["step"] <= start_step]
        jsonl.write(directory / FILE, map(hashed.with_hash, kept))
        self._path = directory / FILE
        self._file = open(self._path, "a", encoding="utf-8")
        sent = max((row["step"] for row in rows), default=0)
        self._trackers = Trackers(track, directory, start_step, sent)
        self._shown = shown
        self._console = ProgressLine(title, num_steps, every_seconds=0.0, start=start_step, stream=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics: finite floats as they are, others as null (JSON has no word for them).

        Raises:
          UserError: the disk is full.
        """
        values = {name: float(value) for name, value in metrics.items()}
        row = {"step": int(step)} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        try:
            self._file.write(jsonl.line(hashed.with_hash(row)))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot write ({error.strerror}); free some space and run the command again"
            ) from None
        self._trackers.write(step, values)
        names = [name for name in self._shown if name in values] or list(values)[:_CONSOLE]
        self._console.update(step, "  ".join(f"{name} {values[name]:.4g}" for name in names))

    def flush(self) -> None:
        """Force what was written onto the disk; call it before saving a checkpoint of the same step."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._trackers.flush()

    def close(self) -> None:
        self._file.close()
        self._trackers.close()
        self._console.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
