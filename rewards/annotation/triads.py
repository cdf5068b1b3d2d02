"""Cycles in a person's own comparisons: a over b, b over c, c over a.

With flip rate ε on a transitive order a complete triad is cyclic with probability ε(1 − ε), and ¼ when every
answer is a coin: of the 8 ways to answer three pairs 2 are cycles; with flips, all three answers of a cycle
agree with one direction, (1−ε)ε² + ε(1−ε)² = ε(1−ε).

Letters in shapes: E edges (answered pairs of a person), T triads.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from rewards.types import Preferences

CHUNK = 4_000_000  # wedges looked at at once; bounds memory


@dataclasses.dataclass(frozen=True)
class Triads:
    """Complete triads of items i < j < k that one person compared in all three pairs.

    Attributes:
      user: int[T]. edges: int[T, 3], edges (i, j), (j, k), (i, k).
      upward: bool[E], the smaller item of the edge was preferred. edge_user: int[E].
    """

    user: Int[np.ndarray, " T"]
    edges: Int[np.ndarray, "T 3"]
    upward: Bool[np.ndarray, " E"]
    edge_user: Int[np.ndarray, " E"]

    @property
    def cyclic(self) -> Bool[np.ndarray, " T"]:
        return is_cyclic(self.upward, self.edges)


def is_cyclic(upward: Bool[np.ndarray, "... E"], edges: Int[np.ndarray, "T 3"]) -> Bool[np.ndarray, "... T"]:
    """i → j → k → i, or the other way round: the first two point alike and the third against them."""
    first, second, third = (upward[..., edges[:, side]] for side in range(3))
    return (first == second) & (second != third)


def triads(prefs: Preferences) -> Triads:
    """Every complete triad of every person. Ties are left out; a pair answered more than once counts by its
    majority, and not at all when that is even.
    """
    rows = np.flatnonzero(prefs.outcome != 0.5)
    low = np.minimum(prefs.chosen, prefs.rejected)[rows].astype(np.int64)
    high = np.maximum(prefs.chosen, prefs.rejected)[rows].astype(np.int64)
    votes = np.where(prefs.chosen[rows] == low, 1, -1)
    pairs, index = np.unique(
        np.stack([prefs.user_index[rows], low, high], axis=1), axis=0, return_inverse=True
    )
    net = np.bincount(index.reshape(-1), votes, len(pairs))
    pairs, net = pairs[net != 0], net[net != 0]
    # A node is an item of a person, so that one sorted table holds everybody's graph.
    node_low, node_high = (pairs[:, 0] * prefs.num_items + pairs[:, side] for side in (1, 2))
    start, end = (np.searchsorted(node_low, node_high, side) for side in ("left", "right"))
    key = node_low * prefs.num_items + pairs[:, 2]
    found = [
        _closed(chunk, start, end, key, pairs[:, 2], prefs.num_items, node_low)
        for chunk in _chunks(end - start)
    ]
    edges = np.concatenate(found) if found else np.zeros((0, 3), np.int64)
    return Triads(pairs[edges[:, 0], 0], edges, net > 0, pairs[:, 0])


def _chunks(wedges: np.ndarray) -> list[np.ndarray]:
    """Edges in groups of about `CHUNK` wedges (i, j), (j, k)."""
    group = np.cumsum(wedges) // CHUNK
    return [
        part for part in np.split(np.arange(len(wedges)), np.flatnonzero(np.diff(group)) + 1) if len(part)
    ]


def _closed(edge, start, end, key, item_high, num_items: int, node_low) -> np.ndarray:
    """Triads whose first edge is in `edge`: every edge (j, k) that starts where (i, j) ends, if (i, k) exists."""
    count = (end - start)[edge]
    first = np.repeat(edge, count)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    second = start[first] + offset
    wanted = node_low[first] * num_items + item_high[second]
    third = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    closed = key[third] == wanted
    return np.stack([first[closed], second[closed], third[closed]], axis=1)
