"""Which of several models predicts people who were left out: on texts that others judged, and on texts that nobody did.

A share of the people and of the texts is left out of every fit. The first answers of each such person place them; the last
third of theirs on known texts, and all on new ones, are predicted. No text of a predicted comparison is in one that places
the person, since a text that comes twice carries its answer over.

Letters in shapes: U people left out, N comparisons.
"""

from collections.abc import Mapping

import numpy as np

from rewards.data.order import by_content
from rewards.data.split import held_out_labels, prompt_text, split_people, split_prompts
from rewards.methods.base import Comparisons, FittedModel, ItemTable, RewardModel
from rewards.types import Preferences

PEOPLE, TEXTS = 1 / 3, 1 / 5
PROMPTS = 8
"""From so many prompts on, texts are left out by whole prompts."""
CONTEXT, TARGETS = 10, 20
"""Answers that place a person, and answers of either kind that are predicted, at most."""


def left_out_losses(
    models: Mapping[str, RewardModel],
    table: ItemTable,
    training: Preferences,
    weight: np.ndarray | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Name → −log P of every person left out, nats, the mean of known and new texts; people in one order.

    Raises:
      UserError: as the fit of a model does.
    """
    known, new = split_people(training, PEOPLE, seed)
    unseen = _new_texts(training, seed)
    weights = np.ones(training.num_comparisons) if weight is None else np.asarray(weight, np.float64)
    context, cells = _rows(training, new & (weights > 0), unseen)
    fitting = known & ~unseen
    train = training.select(fitting)
    losses: dict[str, np.ndarray] = {}
    for name, model in models.items():
        fitted = model.fit(table, train, weight=None if weight is None else np.asarray(weight)[fitting])
        losses[name] = _person_loss(fitted, table, training, context, cells)
    return losses


def shared_texts(training: Preferences) -> float:
    """Share of the texts in comparisons that somebody else has judged too."""
    sides = np.concatenate([training.chosen, training.rejected]).astype(np.int64)
    people = np.concatenate([training.user_index, training.user_index])
    judged = np.unique(sides * training.num_users + people) // training.num_users
    return float(np.mean(np.bincount(judged, minlength=training.num_items)[sides] > 1))


def _new_texts(training: Preferences, seed: int) -> np.ndarray:
    """bool[N]: a text of the comparison is left out of the fits."""
    if len(np.unique(training.item_prompt[training.chosen])) >= PROMPTS:
        return split_prompts(training, TEXTS, seed)[1]
    texts = np.unique(np.concatenate([training.chosen, training.rejected]))
    names = [
        f"{prompt_text(training.prompts[training.item_prompt[text]])}\n{training.item_text[text]}"
        for text in texts
    ]
    held = texts[held_out_labels(names, TEXTS, seed=seed)]
    return np.isin(training.chosen, held) | np.isin(training.rejected, held)


def _rows(
    training: Preferences, asked: np.ndarray, unseen: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Row numbers by person, −1 pads: answers that place them [U, n], and those to be predicted on known and new texts."""
    _, order = by_content(training)
    context, known, new = [], [], []
    for rows in _by_person(training, order[asked[order]]):
        usual = rows[~unseen[rows]]
        choices = np.unique(training.choice[usual])
        late = choices[-(len(choices) // 3) :] if len(choices) > 2 else choices[len(choices) - 1 :]
        tests = usual[np.isin(training.choice[usual], late)] if len(choices) > 1 else usual[:0]
        others = rows[unseen[rows]]
        texts = np.concatenate(
            [side[part] for side in (training.chosen, training.rejected) for part in (tests, others)]
        )
        fresh = ~(np.isin(training.chosen[usual], texts) | np.isin(training.rejected[usual], texts))
        context.append(_padded(usual[fresh], CONTEXT))
        known.append(_padded(tests, TARGETS))
        new.append(_padded(others, TARGETS))
    width = {"context": CONTEXT, "known": TARGETS, "new": TARGETS}
    found = {"context": context, "known": known, "new": new}
    context, known, new = (np.array(part, np.int64).reshape(-1, width[name]) for name, part in found.items())
    return context, (known, new)


def _by_person(training: Preferences, rows: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.flatnonzero(np.diff(training.user_index[rows])) + 1) if len(rows) else []


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows[:length], (0, length - min(len(rows), length)), constant_values=-1)


def _person_loss(
    fitted: FittedModel,
    table: ItemTable,
    training: Preferences,
    context: np.ndarray,
    cells: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    people = fitted.adapt(table, Comparisons.of(training, context))
    total, present = np.zeros(len(context)), np.zeros(len(context))
    for rows in cells:
        pairs = Comparisons.of(training, rows)
        margin = np.asarray(fitted.margins(table, people, pairs), np.float64)
        loss = np.logaddexp(0.0, margin) - pairs.outcome * margin
        count = pairs.weight.sum(axis=1)
        total += np.where(count > 0, (loss * pairs.weight).sum(axis=1) / np.maximum(count, 1), 0.0)
        present += count > 0
    return (total / np.maximum(present, 1))[present > 0]
