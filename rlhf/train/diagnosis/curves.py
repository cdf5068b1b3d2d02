"""Rows of metrics.jsonl as arrays, and their means at both ends: what the detectors of `diagnosis` read."""

from collections.abc import Sequence

import numpy as np

from rewards.files import JSONObject

WINDOW = 10  # rows that are averaged: one iteration is noise
MIN_ROWS = 8  # before that nothing is said of trends


class Curves:
    """Rows as arrays, metric by metric, and their means at both ends."""

    def __init__(self, rows: Sequence[JSONObject]):
        self.rows = rows
        self._series: dict[str, np.ndarray] = {}
        self.steps = [int(row["step"]) for row in rows]
        self.width = int(np.clip(len(rows) // 4, min(4, max(1, len(rows) // 2)), WINDOW))

    def __getitem__(self, name: str) -> np.ndarray:
        """Finite values of `train/NAME`, in order; empty if it was never logged."""
        if name not in self._series:
            values = [row.get(f"train/{name}") for row in self.rows]
            finite = [value for value in values if value is not None and np.isfinite(value)]
            self._series[name] = np.array(finite, np.float64)
        return self._series[name]

    def has(self, *names: str) -> bool:
        """Whether all of these were logged often enough for a trend."""
        return all(len(self[name]) >= MIN_ROWS for name in names)

    def first(self, name: str) -> float:
        return float(self[name][: self.width].mean())

    def last(self, name: str) -> float:
        return float(self[name][-self.width :].mean())

    def median(self, name: str) -> float:
        return float(np.median(self[name][-self.width :]))

    def worst(self, name: str) -> float:
        """Largest median of any five rows in a row."""
        windows = np.lib.stride_tricks.sliding_window_view(self[name], 5)
        return float(np.median(windows, axis=1).max())

    def gain(self, name: str) -> tuple[float, float]:
        """Last minus first mean, and the standard error of that difference."""
        ends = self[name][: self.width], self[name][-self.width :]
        error = np.sqrt(sum(np.var(end, ddof=1) / len(end) for end in ends)) if self.width > 1 else np.inf
        return self.last(name) - self.first(name), float(error)

    def matching(self, prefix: str) -> list[str]:
        """Names of the metrics below `train/PREFIX`."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name.removeprefix("train/") for name in names if name.startswith(f"train/{prefix}")]
