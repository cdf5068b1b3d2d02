"""The order in which comparisons are visited, as a pure function of (seed, step); it keeps no state.

Grain's index shuffle is a keyed permutation: entry i of the order is computed without computing the others. Not
`grain.MapDataset.shuffle`, which seeds it otherwise: runs that stopped under this order must go on in it.
"""

import hashlib
import re

import grain
import numpy as np
from grain.experimental import index_shuffle

from rewards.types import Preferences

_ROUNDS = 4  # as in grain's own shuffle


def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """int32[num_rows]: the permutation of rows visited in `epoch`, another one for every seed and epoch."""
    key = _epoch_key(seed, epoch)
    return np.fromiter((_shuffled(i, num_rows, key) for i in range(num_rows)), np.int32, num_rows)


def row_at(num_rows: int, seed: int, position: int) -> int:
    """The row at a position of the endless sequence: epoch_order(…, position // N)[position % N]."""
    epoch, offset = divmod(position, num_rows)
    return _shuffled(offset, num_rows, _epoch_key(seed, epoch))


def by_content(prefs: Preferences) -> tuple[np.ndarray, np.ndarray]:
    """Places of people and of comparisons in an order that does not depend on how they stand in the file.

    Returns:
      int[U], by user id, numbers in it by size; int[N], by person, choice and items. What is drawn at random in this
      order is drawn alike whatever the order of the rows.
    """
    people = np.empty(prefs.num_users, np.int64)
    names = [(_natural(name), name, user) for user, name in enumerate(prefs.user_ids)]
    people[[user for _, _, user in sorted(names)]] = np.arange(prefs.num_users)
    keys = (prefs.outcome, prefs.rejected, prefs.chosen, prefs.choice, people[prefs.user_index])
    rows = np.empty(prefs.num_comparisons, np.int64)
    rows[np.lexsort(keys)] = np.arange(prefs.num_comparisons)
    return people, rows


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts p2 before p10: texts at even places; at odd ones digits, longer numbers last."""
    parts = re.split("([0-9]+)", name)
    return [(len(part.lstrip("0")) if place % 2 else 0, part) for place, part in enumerate(parts)]


def grain_source(prefs: Preferences, seed: int) -> grain.MapDataset:
    """Endless, shuffled comparisons for Grain; element p depends on (seed, p) alone.

    Elements are dicts of NumPy scalars: `comparison` (index into `prefs`), `user_index`, `chosen`,
    `rejected` (item indices) and `outcome`. Batch, shard and slice it as any `grain.MapDataset`; to resume,
    start from the position.
    """
    num_rows = prefs.num_comparisons

    def element(position: int) -> dict[str, np.generic]:
        n = row_at(num_rows, seed, int(position))
        return {
            "comparison": np.int32(n),
            "user_index": prefs.user_index[n],
            "chosen": prefs.chosen[n],
            "rejected": prefs.rejected[n],
            "outcome": prefs.outcome[n],
        }

    return grain.MapDataset.range(np.iinfo(np.int64).max).map(element)


def _shuffled(index: int, num_rows: int, key: int) -> int:
    return index_shuffle(index, num_rows - 1, key, _ROUNDS) if num_rows > 1 else 0


def _epoch_key(seed: int, epoch: int) -> int:
    """32 bits from (seed, epoch); hashed, so that no arithmetic makes two of the pairs meet."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:4], "little")
