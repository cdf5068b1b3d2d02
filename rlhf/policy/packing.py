"""Token trees: many completions in one row, every shared prefix stored and computed once.

A packed row is a forest of tokens in depth-first order. Node j sees node i iff i is j or an ancestor of j, which in
depth-first order is i ≤ j < end[i], so attention needs two integers a node and no [T, T] matrix on disk.
A plain sequence is a chain, a preference pair a fork behind its prompt, packed examples a forest, and an enumerated
answer space one tree. Because ancestors and depths are the same, each completion has exactly the log-probs it has
in a row of its own.

Shapes: B rows, T nodes a row, S nodes whose next-token distribution is read, N scored (completion) nodes,
C completions a row.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rewards.errors import UserError


class Sequences(NamedTuple):
    """One prompt and its completions, as token ids."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


class PackedRows(NamedTuple):
    """Arrays of packed rows (NumPy on the host, the same record on the device).

    Attributes:
      tokens, positions, end: int32[B, T]; padding nodes see only themselves.
      heads: int32[B, S], nodes whose logits are read.
      scored: int32[B, N], nodes that belong to completions; padding repeats node 0 and is in no completion.
      scored_head: int32[B, N], index into `heads` of each scored node's parent.
      member: bool[B, C, N], which scored nodes make up completion c; all False beyond a row's completions.
    """

    tokens: np.ndarray
    positions: np.ndarray
    end: np.ndarray
    heads: np.ndarray
    scored: np.ndarray
    scored_head: np.ndarray
    member: np.ndarray

    def take(self, rows: np.ndarray) -> "PackedRows":
        return PackedRows(*(array[rows] for array in self))


class _Tree:
    """A trie over token sequences, laid out depth-first."""

    def __init__(self):
        self.children: list[dict[int, int]] = [{}]  # node 0 is a virtual root above all sequences
        self.token, self.parent = [-1], [0]

    def insert(self, sequence: Sequence[int]) -> list[int]:
        """Add a sequence and return its path of node ids."""
        node, path = 0, []
        for token in sequence:
            child = self.children[node].get(token)
            if child is None:
                child = len(self.token)
                self.children[node][token] = child
                self.children.append({})
                self.token.append(token)
                self.parent.append(node)
            node = child
            path.append(node)
        return path

    def cost(self, sequence: Sequence[int]) -> int:
        """How many nodes inserting `sequence` would add."""
        node = 0
        for depth, token in enumerate(sequence):
            child = self.children[node].get(token)
            if child is None:
                return len(sequence) - depth
            node = child
        return 0

    def layout(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Depth-first order: (order of node ids, slot of each node id, depth of each slot, end of each slot)."""
        order, slot, depth = [], [-1] * len(self.token), []
        stack = [(child, 0) for child in reversed(self.children[0].values())]
        while stack:
            node, level = stack.pop()
            slot[node] = len(order)
            order.append(node)
            depth.append(level)
            stack.extend((child, level + 1) for child in reversed(self.children[node].values()))
        end = list(range(1, len(order) + 1))
        for index in range(len(order) - 1, -1, -1):
            parent = self.parent[order[index]]
            if parent:
                end[slot[parent]] = max(end[slot[parent]], end[index])
        return order, slot, depth, end


def _row(groups: Sequence[Sequences]) -> dict[str, list]:
    """Lay out one row; `members` lists, for each completion, its scored nodes."""
    tree, paths = _Tree(), []
    for group in groups:
        for completion in group.completions:
            paths.append(tree.insert((*group.prompt, *completion))[len(group.prompt) :])
    order, slot, depth, end = tree.layout()
    scored = sorted({slot[node] for path in paths for node in path})
    parents = [slot[tree.parent[order[index]]] for index in scored]
    heads = sorted(set(parents))
    head_index = {node: index for index, node in enumerate(heads)}
    scored_index = {node: index for index, node in enumerate(scored)}
    return {
        "tokens": [tree.token[node] for node in order],
        "positions": depth,
        "end": end,
        "heads": heads,
        "scored": scored,
        "scored_head": [head_index[node] for node in parents],
        "members": [[scored_index[slot[node]] for node in path] for path in paths],
    }


def pack(rows: Sequence[Sequence[Sequences]], *, multiple: int = 8) -> PackedRows:
    """Pack each list of groups into one row; widths are padded to the longest row, rounded up to `multiple`.

    Raises:
      ValueError: a prompt or completion is empty (its first token would have no parent).
    """
    for groups in rows:
        for group in groups:
            if not group.prompt or not all(group.completions):
                raise ValueError("a packed prompt or completion has no tokens")
    laid = [_row(groups) for groups in rows]

    def width(name: str) -> int:
        return -(-max(len(row[name]) for row in laid) // multiple) * multiple

    num_nodes, num_heads, num_scored = width("tokens"), width("heads"), width("scored")
    num_completions = max(len(row["members"]) for row in laid)
    packed = PackedRows(
        tokens=np.zeros((len(laid), num_nodes), np.int32),
        positions=np.zeros((len(laid), num_nodes), np.int32),
        end=np.tile(np.arange(1, num_nodes + 1, dtype=np.int32), (len(laid), 1)),
        heads=np.zeros((len(laid), num_heads), np.int32),
        scored=np.zeros((len(laid), num_scored), np.int32),
        scored_head=np.zeros((len(laid), num_scored), np.int32),
        member=np.zeros((len(laid), num_completions, num_scored), bool),
    )
    for index, row in enumerate(laid):
        for name in ("tokens", "positions", "end", "heads", "scored", "scored_head"):
            getattr(packed, name)[index, : len(row[name])] = row[name]
        for completion, nodes in enumerate(row["members"]):
            packed.member[index, completion, nodes] = True
    return packed


def check_row_length(row_length: int | None, length: int) -> None:
    """Refuse an example that is longer than a row; None holds any."""
    if row_length is not None and length > row_length:
        raise UserError(
            f"train.row_length: {row_length} tokens cannot hold an example of {length}; "
            f"set train.row_length to at least {length}"
        )


def fill_rows(sequences: Iterable[Sequences], row_length: int) -> list[list[Sequences]]:
    """Distribute single-completion groups over rows of at most `row_length` nodes, similar ones together.

    Sorting by tokens puts shared prefixes into the same row, where they cost nothing.

    Raises:
      UserError: one sequence alone is longer than `row_length`.
    """
    rows, tree, used = [], _Tree(), row_length
    for group in sorted(sequences):
        tokens = (*group.prompt, *group.completions[0])
        check_row_length(row_length, len(tokens))
        cost = tree.cost(tokens)
        if used + cost > row_length:
            rows.append([])
            tree, used, cost = _Tree(), 0, len(tokens)
        tree.insert(tokens)
        used += cost
        rows[-1].append(group)
    return rows
