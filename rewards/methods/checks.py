"""What every reward model may rely on: finite embeddings, items that exist, outcomes between 0 and 1.

Checked where the models are called (`rewards.methods.base`), once for all of them, so that none answers a mistake with
a traceback or a plausible number.

Letters in shapes: I items, D embedding width, P prompts, U people, n answers or pairs (padded), N comparisons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rewards.basis.fit import checked_weight
from rewards.errors import UserError
from rewards.types import Preferences

if TYPE_CHECKING:
    from rewards.methods.base import Comparisons, ItemTable


def check_table(table: ItemTable) -> None:
    """float[I, D] with one line an item, float[P, D] with one a prompt, and no value that is not finite.

    Raises:
      UserError: naming the item or prompt.
    """
    for name, array, count in (
        ("item", table.embeddings, table.prefs.num_items),
        ("prompt", table.prompt_embeddings, len(table.prefs.prompts)),
    ):
        if array is None:
            continue
        array = np.asarray(array)
        if array.ndim != 2 or len(array) != count:
            raise UserError(
                f"{table.prefs.source}: embeddings of shape {array.shape} for {count} {name}s; give one line a {name}"
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise UserError(
                f"{table.prefs.source}: the embedding of {name} {bad[0]} holds a value that is not finite; check its "
                "text or features"
            )


def check_training(table: ItemTable, training: Preferences, weight: np.ndarray | None) -> None:
    """Comparisons of two different items of the table by people of the user table, with weights ≥ 0.

    Raises:
      UserError: naming the row.
    """
    checked_weight(training, weight)
    check_table(table)

    def refuse(bad: np.ndarray, what: str) -> None:
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise UserError(f"{training.source}: row {training.row[first]}: {what}")

    outcome = np.asarray(training.outcome, np.float64)
    refuse(
        ~((outcome >= 0) & (outcome <= 1)),
        "outcome must be 1, 0.5 (tie) or 0, or a probability; mend the row",
    )
    for name, index, count in (
        ("chosen", training.chosen, len(table.embeddings)),
        ("rejected", training.rejected, len(table.embeddings)),
        ("user_index", training.user_index, training.num_users),
    ):
        refuse((index < 0) | (index >= count), f"{name} must be from 0 to {count - 1}; mend the row")
    refuse(training.chosen == training.rejected, "compares an item with itself; remove the row")


def check_answers(table: ItemTable, answers: Comparisons) -> None:
    """What people answered: as `check_training`, where an answer counts.

    Raises:
      UserError: naming person and answer.
    """
    check_pairs(table, answers)
    counts = answers.weight > 0
    outcome = np.asarray(answers.outcome, np.float64)
    _refuse(
        counts & ~((outcome >= 0) & (outcome <= 1)), "outcome must be 1, 0.5 (tie) or 0, or a probability"
    )
    _refuse(counts & (answers.chosen == answers.rejected), "compares an item with itself; remove it")


def check_pairs(table: ItemTable, pairs: Comparisons) -> None:
    """Pairs to be predicted: [U, n] each, of items of the table.

    Raises:
      UserError: naming person and pair.
    """
    shapes = {np.shape(part) for part in (pairs.chosen, pairs.rejected, pairs.outcome, pairs.weight)}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise UserError(f"comparisons: parts of shapes {sorted(shapes)}; all must be people × answers")
    _refuse(~(np.isfinite(pairs.weight) & (pairs.weight >= 0)), "weight must be a finite number ≥ 0")
    count = len(table.embeddings)
    for name, index in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        _refuse((index < 0) | (index >= count), f"{name} must be an item from 0 to {count - 1}")


def _refuse(bad: np.ndarray, what: str) -> None:
    if bad.any():
        person, answer = (int(part[0]) for part in np.nonzero(bad))
        raise UserError(f"comparisons: person {person}, answer {answer}: {what}")
