"""What every reward model may rely on: numbers that are numbers, items that exist, outcomes between 0 and 1, whole people.

Checked where the models are called (`rewards.methods.base`), once for all of them, so that none answers a mistake with
a traceback or a plausible number. What is handed on holds arrays; where an answer does not count (weight 0) whatever
stood there is replaced by item 0 against itself, a tie.

Letters in shapes: I items, D embedding width, P prompts, U people, n answers or pairs (padded), N comparisons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.basis.fit import checked_weight
from rewards.errors import UserError
from rewards.types import Preferences

if TYPE_CHECKING:
    from rewards.methods.base import Comparisons, ItemTable

LARGEST = 1e15  # of an embedding: float32 holds its square, and the sum of many
_WHOLE, _REAL = "iu", "fiub"
_SHOULD = "outcome must be 1, 0.5 (tie) or 0, or a probability"


def check_table(table: ItemTable) -> None:
    """real[I, D] with one line an item, real[P, D] with one a prompt, D ≥ 1, and every item under a prompt that there is.

    Raises:
      UserError: naming the item or prompt.
    """
    source, prompts = table.prefs.source, len(table.prefs.prompts)
    for name, array, count in (
        ("item", table.embeddings, table.prefs.num_items),
        ("prompt", table.prompt_embeddings, prompts),
    ):
        if array is None and name == "prompt":
            continue
        array = _array(f"{source}: embeddings", array, _REAL)
        if array.ndim != 2 or len(array) != count or not array.shape[1]:
            raise UserError(
                f"{source}: embeddings of shape {array.shape} for {count} {name}s; give one line of numbers a {name}"
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise UserError(
                f"{source}: the embedding of {name} {bad[0]} holds a value that is not finite; check its "
                "text or features"
            )
        if array.size and np.abs(array).max() > LARGEST:
            raise UserError(
                f"{source}: an embedding holds a number above {LARGEST:g}; divide them all by the same number"
            )
    under = _array(f"{source}: item_prompt", table.prefs.item_prompt, _WHOLE)
    bad = np.flatnonzero((under < 0) | (under >= prompts))
    if len(bad):
        raise UserError(f"{source}: item {bad[0]}: item_prompt must be from 0 to {prompts - 1}")


def checked_training(table: ItemTable, training: Preferences, weight: np.ndarray | None) -> Preferences:
    """Comparisons of two different items of the table by people of the user table, with weights ≥ 0.

    Raises:
      UserError: naming the row.
    """
    source, count = training.source, np.shape(training.row)
    parts = {
        name: _array(f"{source}: {name}", getattr(training, name), kinds)
        for name, kinds in (
            ("chosen", _WHOLE),
            ("rejected", _WHOLE),
            ("user_index", _WHOLE),
            ("outcome", _REAL),
        )
    }
    for name, array in parts.items():
        if array.shape != count or array.ndim != 1:
            raise UserError(
                f"{source}: {name} of shape {array.shape} for rows of shape {count}; give one a row"
            )
    if weight is not None:
        _array("weight", weight, _REAL)
    checked_weight(training, weight)
    check_table(table)

    def refuse(bad: np.ndarray, what: str) -> None:
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise UserError(f"{source}: row {training.row[first]}: {what}")

    refuse(~((parts["outcome"] >= 0) & (parts["outcome"] <= 1)), f"{_SHOULD}; mend the row")
    for name, most in (
        ("chosen", len(table.embeddings)),
        ("rejected", len(table.embeddings)),
        ("user_index", training.num_users),
    ):
        refuse(
            (parts[name] < 0) | (parts[name] >= most), f"{name} must be from 0 to {most - 1}; mend the row"
        )
    refuse(parts["chosen"] == parts["rejected"], "compares an item with itself; remove the row")
    return _with(training, parts)


def checked_answers(table: ItemTable, answers: Comparisons) -> Comparisons:
    """What people answered: as `checked_training`, where an answer counts.

    Raises:
      UserError: naming person and answer.
    """
    answers = checked_pairs(table, answers)
    counts = answers.weight > 0
    _refuse(counts & ~((answers.outcome >= 0) & (answers.outcome <= 1)), _SHOULD)
    _refuse(counts & (answers.chosen == answers.rejected), "compares an item with itself; remove it")
    return answers


def checked_pairs(table: ItemTable, pairs: Comparisons) -> Comparisons:
    """Pairs to be predicted: [U, n] each, of items of the table, by at least one person.

    Raises:
      UserError: naming person and pair.
    """
    parts = {
        name: _array(f"comparisons: {name}", getattr(pairs, name), kinds)
        for name, kinds in (("chosen", _WHOLE), ("rejected", _WHOLE), ("outcome", _REAL), ("weight", _REAL))
    }
    shapes = {array.shape for array in parts.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise UserError(f"comparisons: parts of shapes {sorted(shapes)}; all must be people × answers")
    if not len(parts["weight"]):
        raise UserError("comparisons: of nobody; give one line a person")
    weight = parts["weight"]
    _refuse(~(np.isfinite(weight) & (weight >= 0)), "weight must be a finite number ≥ 0")
    counts, count = weight > 0, len(table.embeddings)
    for name in ("chosen", "rejected"):
        outside = (parts[name] < 0) | (parts[name] >= count)
        _refuse(counts & outside, f"{name} must be an item from 0 to {count - 1}")
        parts[name] = np.where(outside, 0, parts[name]) if outside.any() else parts[name]
    nothing = ~counts & ~np.isfinite(parts["outcome"])
    if nothing.any():
        parts["outcome"] = np.where(nothing, 0.5, parts["outcome"])
    return _with(pairs, parts)


def check_people(people: Any, count: int) -> None:
    """States of `count` people, every number of them finite.

    Raises:
      UserError: of another number of people, or naming the first person whose state is none.
    """
    arrays = list(_arrays(people))
    if not arrays:
        raise UserError(
            f"people: {type(people).__name__} holds no states; give what adapt() or seen() returned"
        )
    for array in arrays:
        if array.ndim < 1 or len(array) != count:
            raise UserError(
                f"people: states of shape {array.shape} for comparisons of {count} people; give one state a line"
            )
        bad = np.flatnonzero(~np.isfinite(array.reshape(count, -1)).all(axis=1))
        if len(bad):
            raise UserError(
                f"people: the state of person {bad[0]} holds a value that is not finite; adapt them again"
            )


def check_fitted(people: Any, training: Preferences, kind: str) -> None:
    """A fit that came to numbers.

    Raises:
      UserError: it did not; what it was fitted on is too little, or too odd.
    """
    if not all(np.isfinite(array).all() for array in _arrays(people)):
        raise UserError(
            f"{training.source}: {training.num_comparisons} comparisons do not determine the {kind} model (its fit is "
            "not finite); give more comparisons of more people, or choose another model"
        )


def _arrays(state: Any) -> Iterator[np.ndarray]:
    if dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from _arrays(getattr(state, field.name))
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _arrays(part)
    elif hasattr(state, "dtype") and np.dtype(state.dtype).kind in _REAL:
        yield np.asarray(state)


def _array(place: str, value: Any, kinds: str) -> np.ndarray:
    """The value as an array of whole (`iu`) or real numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind not in kinds and array.size:
        what = "whole numbers" if kinds == _WHOLE else "numbers"
        raise UserError(f"{place}: must be an array of {what}, not of {array.dtype.name}")
    if kinds == _WHOLE and array.dtype.kind != "i":  # unsigned ones turn into floats beside signed ones
        return array.astype(np.int64)
    return array.astype(np.float32) if array.dtype.kind == "b" else array


def _with(record: Any, parts: dict[str, np.ndarray]) -> Any:
    """The record with these arrays; itself where it holds them already."""
    changed = {name: array for name, array in parts.items() if array is not getattr(record, name)}
    return dataclasses.replace(record, **changed) if changed else record


def _refuse(bad: np.ndarray, what: str) -> None:
    if bad.any():
        person, answer = (int(part[0]) for part in np.nonzero(bad))
        raise UserError(f"comparisons: person {person}, answer {answer}: {what}")
