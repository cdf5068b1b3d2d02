"""Rows of similar length together: little padding, a few compiled programs.

A batch is as wide as its longest row, and a program is compiled for a width. So the rows of 50 steps at a time, of one epoch
at most (a row and its copy of the next would meet), are sorted by length before they are cut into batches (`group_by_length`
of transformers' and TRL's trainers), and a batch is padded to the next of a few widths, which are chosen so that the data set
has the least padding. What a row says does not depend on the width it is padded to.

Shapes: R rows, T nodes, S heads, N scored nodes (`packing.PackedRows`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rewards.data import order
from rlhf.policy.packing import PackedRows

WINDOW = 50  # steps, as in transformers' sampler
MULTIPLE = 8  # as `packing.pack` rounds widths


class Widths(NamedTuple):
    """To what rows are padded."""

    nodes: int
    heads: int
    scored: int


def used(packed: PackedRows) -> np.ndarray:
    """int32[R, 3], how many nodes, heads and scored nodes of each row are no padding."""
    places = np.arange(1, packed.scored.shape[1] + 1)
    real = packed.member.any(axis=1)  # [R, N]; a leaf is scored, and the last node is a leaf
    scored = np.max(real * places, axis=1)
    nodes = np.max(real * packed.scored, axis=1) + 1
    heads = np.zeros_like(nodes)
    if packed.heads.shape[1]:  # reward models read states and keep no heads
        heads = np.max(real * packed.scored_head, axis=1) + 1
    return np.stack([nodes, heads, scored], axis=1).astype(np.int32)


def divide(sizes: np.ndarray, most: int) -> list[Widths]:
    """At most so many widths, ascending, for rows of `sizes` int[R, 3], such that padding to the next has the fewest nodes.

    Every row fits the last. Exact, by dynamic programming over the R' different lengths: O(most · R'²).
    """
    rounded = -(-sizes // MULTIPLE) * MULTIPLE
    lengths, count = np.unique(rounded[:, 0], return_counts=True)
    before = np.concatenate([[0], np.cumsum(count)])
    # best[j]: nodes of the shortest j lengths under the widths so far; cut[k][j]: how many lengths the first k widths take
    best = np.where(np.arange(len(lengths) + 1) == 0, 0.0, np.inf)
    cuts = []
    for _ in range(min(most, len(lengths))):
        cost = best[:, None] + (before[None, 1:] - before[:, None]) * lengths[None, :].astype(float)
        cost = np.where(
            np.arange(len(lengths) + 1)[:, None] <= np.arange(len(lengths))[None, :], cost, np.inf
        )
        cuts.append(np.argmin(cost, axis=0))
        best = np.concatenate([[np.inf], np.min(cost, axis=0)])
    ends, taken = [], len(lengths)
    for cut in reversed(cuts):
        ends.append(lengths[taken - 1])
        taken = cut[taken - 1]
    ends.reverse()
    within = [rounded[rounded[:, 0] <= end].max(axis=0) for end in ends]
    return [Widths(int(end), int(size[1]), int(size[2])) for end, size in zip(ends, within, strict=True)]


def fitting(widths: Sequence[Widths], nodes: np.ndarray) -> Widths:
    """The narrowest of `widths` that rows of so many nodes [R] fit."""
    return next(width for width in widths if width.nodes >= nodes.max())


def trimmed(packed: PackedRows, widths: Widths) -> PackedRows:
    """Rows without the padding beyond `widths`; leading axes are kept."""
    nodes, heads, scored = widths
    return PackedRows(
        packed.tokens[..., :nodes],
        packed.positions[..., :nodes],
        packed.end[..., :nodes],
        packed.heads[..., :heads],
        packed.scored[..., :scored],
        packed.scored_head[..., :scored],
        packed.member[..., :scored],
    )


@dataclasses.dataclass(frozen=True)
class Grouped:
    """The order of a run whose batches hold rows of similar length.

    Attributes:
      sizes: int32[R, 3], as `used` gives them. widths: as `divide` gives them. seed, num_steps: of the run. batch: rows a step.
    """

    sizes: np.ndarray
    widths: list[Widths]
    seed: int
    num_steps: int
    batch: int

    def rows(self, step: int) -> np.ndarray:
        """int[batch]: the rows of one step, a function of its number alone.

        The steps of a window visit together what they would visit without grouping, each its part.
        """
        window, place = divmod(step, self._steps)
        return self._window(window)[place]

    def width(self, index: np.ndarray) -> Widths:
        """The narrowest that these rows fit."""
        return fitting(self.widths, self.sizes[index, 0])

    def padding(self) -> float:
        """Share of nodes that are padding, on average over an epoch of single rows."""
        wide = np.array([width.nodes for width in self.widths])
        return padding(self.sizes[:, 0], wide[np.searchsorted(wide, self.sizes[:, 0])])

    @functools.cached_property
    def _steps(self) -> int:
        """Of a window."""
        return max(1, min(WINDOW, len(self.sizes) // self.batch))

    @functools.cached_property
    def _kept(self) -> dict[int, np.ndarray]:
        return {}

    def _window(self, window: int) -> np.ndarray:
        """int[steps, batch] of the steps of a window; the last one looked at is kept."""
        if window not in self._kept:
            self._kept.clear()
            first = window * self._steps
            steps = min(self._steps, max(self.num_steps - first, 1))
            places = range(first * self.batch, (first + steps) * self.batch)
            index = np.array([order.row_at(len(self.sizes), self.seed, place) for place in places])
            index = index[np.argsort(self.sizes[index, 0], kind="stable")].reshape(steps, self.batch)
            # Epochs count from 0, so that no epoch's order is drawn like that of a window's batches.
            self._kept[window] = index[order.epoch_order(steps, self.seed, -1 - window)]
        return self._kept[window]


def padding(lengths: np.ndarray, width: np.ndarray | int) -> float:
    """Share of nodes that are padding where rows of `lengths` [R] are padded to `width`."""
    return 1.0 - float(np.sum(lengths)) / float(np.sum(np.broadcast_to(width, lengths.shape)))
