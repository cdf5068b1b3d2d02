"""Preferences → packed rows for training, and the order in which a run visits them.

Shapes: R rows of the data set, C completions a row, P pairs a row, I items.
"""

import collections
import itertools
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import PyTree

from rewards.data import order
from rewards.errors import UserError
from rewards.types import Preferences, Prompt
from rlhf.policy.packing import PackedRows, Sequences, fill_rows, pack


class PromptEncoder(Protocol):
    """What batches need of a tokenizer."""

    def encode_prompt(self, prompt: Prompt) -> list[int]: ...
    def encode_completion(self, text: str) -> list[int]: ...


class SFTRows(NamedTuple):
    """weight[R, C]: how often a completion occurs in the data; 0 on padding."""

    packed: PackedRows
    weight: np.ndarray


class PairRows(NamedTuple):
    """Rows of comparable completions.

    Attributes:
      packed: one prompt a row.
      item: int32[R, C], index of each completion in the item table; −1 on padding.
      pairs: int32[R, P, 2], (chosen, rejected) indices of completions.
      pair_weight: float32[R, P]; 0 on padding.
      outcome: float32[R, P], 1 when the first of the pair was chosen, 0.5 for a tie.
      user: int32[R], whose labels the row holds; −1 where labels are not used.
      label_weight: float32[R], how much the row's labels count, its pairs' mean weight; None counts all alike.
    """

    packed: PackedRows
    item: np.ndarray
    pairs: np.ndarray
    pair_weight: np.ndarray
    outcome: np.ndarray
    user: np.ndarray
    label_weight: np.ndarray | None = None


def encode_items(
    prefs: Preferences, tokenizer: PromptEncoder, max_positions: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of every prompt and of every item's completion.

    Raises:
      UserError: a prompt with its completion is longer than the model's context.
    """
    prompts = [tuple(tokenizer.encode_prompt(prompt)) for prompt in prefs.prompts]
    completions = [tuple(tokenizer.encode_completion(text)) for text in prefs.item_text]
    for item, completion in enumerate(completions):
        length = len(prompts[prefs.item_prompt[item]]) + len(completion)
        if length > max_positions:
            used = np.flatnonzero((prefs.chosen == item) | (prefs.rejected == item))
            row = f" row {prefs.row[used[0]]}" if len(used) else ""
            raise UserError(
                f"{prefs.source}{row}: prompt and completion have {length} tokens, the model's context "
                f"holds {max_positions}; shorten the text or use a model with a longer context"
            )
    return prompts, completions


def sft_rows(
    prefs: Preferences,
    tokenizer: PromptEncoder,
    *,
    completions: str,
    row_length: int | None,
    max_positions: int,
) -> SFTRows:
    """Pack every distinct example once, weighted by how often it occurs.

    Args:
      completions: "chosen" learns preferred completions (ties count half for either side); "all" learns every
        distinct completion with equal weight.
      row_length: None is that of the longest example, and no less than 512.
    """
    prompts, encoded = encode_items(prefs, tokenizer, max_positions)
    if completions == "all":
        count = np.zeros(prefs.num_items)
        count[np.union1d(prefs.chosen, prefs.rejected)] = 1.0
    else:
        count = np.bincount(prefs.chosen, prefs.outcome, prefs.num_items)
        count += np.bincount(prefs.rejected, 1.0 - prefs.outcome, prefs.num_items)
    weight_of: dict[Sequences, float] = collections.defaultdict(float)
    for item in np.flatnonzero(count):
        weight_of[Sequences(prompts[prefs.item_prompt[item]], (encoded[item],))] += float(count[item])
    if row_length is None:
        longest = max(len(group.prompt) + len(group.completions[0]) for group in weight_of)
        row_length = max(512, -(-longest // 64) * 64)
    rows = fill_rows(weight_of, row_length)
    packed = pack(rows)
    weight = np.zeros(packed.member.shape[:2], np.float32)
    for index, row in enumerate(rows):
        weight[index, : len(row)] = [weight_of[group] for group in row]
    return SFTRows(packed, weight)


def _pair_groups(prefs: Preferences, observed: bool, whole_prompt: bool) -> list[tuple[int, dict]]:
    """(user, {(first, second) items: comparisons}) for each row to build.

    With observed labels a row keeps one person's comparisons of one prompt (`whole_prompt`) or one comparison;
    without, the labels do not matter and equal pairs are one.
    """
    groups: dict[tuple, dict[tuple[int, int], list[int]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for n in range(prefs.num_comparisons):
        chosen, rejected = int(prefs.chosen[n]), int(prefs.rejected[n])
        prompt = int(prefs.item_prompt[chosen])
        pair = (chosen, rejected) if observed else (min(chosen, rejected), max(chosen, rejected))
        user = int(prefs.user_index[n]) if observed else -1
        key = (user, prompt) if whole_prompt else (user, prompt, *pair)
        groups[key][pair].append(n)
    return [(key[0], pairs) for key, pairs in groups.items()]


def pair_rows(
    prefs: Preferences,
    tokenizer: PromptEncoder,
    *,
    observed: bool,
    size: int | None,
    max_positions: int,
    weight: np.ndarray | None = None,
) -> PairRows:
    """Rows for the DPO family.

    Args:
      observed: keep people's own labels (observed, dpo, ipo, cdpo, simpo) rather than comparing every pair in a row.
      size: completions a row: 2 for pairs, None for all of a prompt (of a person and prompt when `observed`);
        other numbers, for comparing every pair only, cut a prompt's completions into groups of about that many.
      weight: float[N], how much each of people's own labels counts; outcomes may then be soft.
    """
    if observed and size not in (2, None):
        raise ValueError(f"rows of people's own labels hold 2 completions or all of a prompt, not {size}")
    prompts, encoded = encode_items(prefs, tokenizer, max_positions)
    if not observed and size != 2:
        groups = [(-1, items, None) for items in _item_groups(prefs, size)]
    else:
        groups = [
            (user, sorted({item for pair in pairs for item in pair}), pairs)
            for user, pairs in _pair_groups(prefs, observed, whole_prompt=size is None)
        ]
    packed = pack(
        [
            [Sequences(prompts[prefs.item_prompt[items[0]]], tuple(encoded[i] for i in items))]
            for _, items, _ in groups
        ]
    )
    num_completions = packed.member.shape[1]
    num_pairs = max(len(pairs) if pairs else len(items) * (len(items) - 1) // 2 for _, items, pairs in groups)
    rows = PairRows(
        packed,
        np.full((len(groups), num_completions), -1, np.int32),
        np.zeros((len(groups), num_pairs, 2), np.int32),
        np.zeros((len(groups), num_pairs), np.float32),
        np.ones((len(groups), num_pairs), np.float32),
        np.array([user for user, _, _ in groups], np.int32),
        None if weight is None else np.zeros(len(groups), np.float32),
    )
    for index, (_, items, pairs) in enumerate(groups):
        rows.item[index, : len(items)] = items
        place = {item: c for c, item in enumerate(items)}
        labelled = pairs or {pair: [] for pair in itertools.combinations(items, 2)}
        for p, ((first, second), comparisons) in enumerate(labelled.items()):
            rows.pairs[index, p] = place[first], place[second]
            share = np.ones(len(comparisons)) if weight is None else weight[comparisons]
            total = float(np.sum(share))
            rows.pair_weight[index, p] = total if observed else 1.0
            if total > 0:
                rows.outcome[index, p] = np.sum(share * prefs.outcome[comparisons]) / total
        if rows.label_weight is not None:
            questions = len({frozenset(pair) for pair in labelled})
            rows.label_weight[index] = np.sum(rows.pair_weight[index]) / questions
    return rows


def _item_groups(prefs: Preferences, size: int | None) -> list[list[int]]:
    """Distinct items of each prompt, in groups of `size` (None: all); no group of one."""
    of_prompt: dict[int, list[int]] = collections.defaultdict(list)
    for item in np.union1d(prefs.chosen, prefs.rejected):
        of_prompt[int(prefs.item_prompt[item])].append(int(item))
    groups = []
    for items in of_prompt.values():
        parts = 1 if size is None else max(1, round(len(items) / size))
        groups += [list(part) for part in np.array_split(items, parts) if len(part) > 1]
    return [[int(item) for item in group] for group in groups]


def batch_rows(seed: int, step: int, num_rows: int, batch: int) -> np.ndarray:
    """Row indices of one step: consecutive slices of an endless sequence of shuffled epochs.

    A function of (seed, step) alone, so a resumed run reads what an uninterrupted one reads.
    """
    return np.array([order.row_at(num_rows, seed, step * batch + offset) for offset in range(batch)])


def microbatches(rows: PyTree, index: np.ndarray, accumulation: int) -> PyTree:
    """Gather rows `index` of every array and split them: leaves get shape [accumulation, rows, ...]."""
    return jax.tree.map(
        lambda a: a[index].reshape(accumulation, len(index) // accumulation, *a.shape[1:]), rows
    )
