"""Which of several models predicts people who were left out: on texts that others judged, and on texts that nobody did.

A share of the people and of the texts is left out of every fit. Of each such person the last choices on known texts and on
new ones are predicted, each by itself, from answers of theirs that share no text with it, since a text that comes twice may
carry its answer over.

Letters in shapes: U people left out, N comparisons, B choices that are predicted, n answers and T comparisons (padded).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from rewards.data.order import by_content
from rewards.data.split import held_out_labels, prompt_text, split_people, split_prompts
from rewards.errors import UserError
from rewards.methods.base import Comparisons, FittedModel, ItemTable, RewardModel
from rewards.types import Preferences

PEOPLE, TEXTS = 1 / 3, 1 / 5
PROMPTS = 8
"""From so many prompts on, texts are left out by whole prompts."""
CONTEXT, CHOICES, TARGETS = 10, 3, 12
"""Answers that place a person, choices of either kind that are predicted, and comparisons of one, at most."""


def left_out_losses(
    models: Mapping[str, RewardModel],
    table: ItemTable,
    training: Preferences,
    weight: np.ndarray | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Name → −log P of every person left out, nats, the mean of known and new texts; people in one order.

    Raises:
      UserError: as the fit of a model does; fewer than two people have something to predict.
    """
    known, new = split_people(training, PEOPLE, seed)
    unseen = _new_texts(training, seed)
    weights = np.ones(training.num_comparisons) if weight is None else np.asarray(weight, np.float64)
    met = episodes(training, new & (weights > 0), unseen)
    if (people := len(np.unique(met.owner))) < 2:
        raise UserError(f"{people} people left out have something to predict")
    fitting = known & ~unseen
    train = training.select(fitting)
    losses: dict[str, np.ndarray] = {}
    for name, model in models.items():
        fitted = model.fit(table, train, weight=None if weight is None else np.asarray(weight)[fitting])
        losses[name] = _person_loss(fitted, table, training, met)
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


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One choice of a person to be predicted, and the answers that place them; rows of comparisons, −1 pads.

    Attributes:
      owner: int[B], place of the person, 0 … U − 1. new: bool[B], the choice is about a text left out.
      context: int[B, n]. target: int[B, T].
    """

    owner: Int[np.ndarray, " B"]
    new: Bool[np.ndarray, " B"]
    context: Int[np.ndarray, "B n"]
    target: Int[np.ndarray, "B T"]


def episodes(training: Preferences, asked: np.ndarray, unseen: np.ndarray) -> Episodes:
    """Everybody's last choices on known and on new texts, each with the first of the other answers that share no text."""
    order = np.argsort(by_content(training)[1])
    owner, new, context, target = [], [], [], []
    for person, rows in enumerate(_by_person(training, order[asked[order]])):
        usual = rows[~unseen[rows]]
        for kind, part in ((False, usual), (True, rows[unseen[rows]])):
            for choice in np.unique(training.choice[part])[-CHOICES:]:
                tests = part[training.choice[part] == choice]
                texts = np.concatenate([training.chosen[tests], training.rejected[tests]])
                fresh = ~(np.isin(training.chosen[usual], texts) | np.isin(training.rejected[usual], texts))
                owner.append(person)
                new.append(kind)
                context.append(_padded(usual[fresh], CONTEXT))
                target.append(_padded(tests, TARGETS))
    return Episodes(
        np.array(owner, np.int64),
        np.array(new, bool),
        np.array(context, np.int64).reshape(-1, CONTEXT),
        np.array(target, np.int64).reshape(-1, TARGETS),
    )


def _by_person(training: Preferences, rows: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.flatnonzero(np.diff(training.user_index[rows])) + 1) if len(rows) else []


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows[:length], (0, length - min(len(rows), length)), constant_values=-1)


def _person_loss(
    fitted: FittedModel, table: ItemTable, training: Preferences, met: Episodes
) -> Float[np.ndarray, " U"]:
    people = fitted.adapt(table, Comparisons.of(training, met.context))
    pairs = Comparisons.of(training, met.target)
    margin = np.asarray(fitted.margins(table, people, pairs), np.float64)
    loss = (np.logaddexp(0.0, margin) - pairs.outcome * margin) * pairs.weight
    loss = loss.sum(axis=1) / pairs.weight.sum(axis=1)
    total, cells = 0.0, 0
    for kind in (False, True):
        mine = met.new == kind
        count = np.bincount(met.owner[mine], minlength=met.owner.max(initial=-1) + 1)
        total += np.bincount(met.owner[mine], loss[mine], len(count)) / np.maximum(count, 1)
        cells += count > 0
    return np.asarray(total / cells)
