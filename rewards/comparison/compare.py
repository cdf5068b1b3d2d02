"""Every reward model on the same data, questions and people: four cells, adaptation curve, swaps, intervals.

People and prompts are divided once (`division`). New people answer the *same* random questions under every model
(common random numbers), and models with a Gaussian belief also those they would choose. What counts is the difference
to the aggregate model person by person; intervals resample people.

Letters in shapes: U people, S questions asked, T test comparisons (padded), N comparisons, I items.
Source: design of four cells and swaps as in the personalised reward literature's own critiques (PRISM leak,
LoRe's unseen-unseen split); cluster bootstrap, Efron & Tibshirani 1993 §8.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.basis.belief import Belief
from rewards.comparison import replay
from rewards.comparison.measures import padded_rows, person_accuracy, person_mean
from rewards.data.division import CELLS, MAIN, Division
from rewards.errors import UserError
from rewards.methods.base import Comparisons, FittedModel, ItemTable
from rewards.methods.rules import GaussianRule
from rewards.types import Preferences

AGGREGATE = "aggregate"
BINS = 5
IGNORES = 0.002
"""A mean change of P(chosen ≻ rejected) below this, under another's answers, is no change at all."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is asked and predicted, the same for every model.

    Attributes:
      counts: numbers of answers; `answers` is the one by which verdicts are given.
      people: int[U], held-out people with something to predict.
      orders: draws of int[U, S], comparison rows in the order asked, −1 beyond a person's pool.
      pool: int[U, Q], all rows that may be asked.
      new: cell → Comparisons[U, T] of `people`.
      known: cell → Comparisons of every person in the user table, in its order.
    """

    prefs: Preferences
    division: Division
    counts: tuple[int, ...]
    answers: int
    people: np.ndarray
    orders: tuple[np.ndarray, ...]
    pool: np.ndarray
    new: dict[str, Comparisons]
    known: dict[str, Comparisons]

    @classmethod
    def build(
        cls, prefs: Preferences, division: Division, counts: tuple[int, ...], draws: int, seed: int
    ) -> "Protocol":
        untied = prefs.outcome != 0.5
        new = [mask & untied for cell, mask in division.tests.items() if cell.startswith("unseen")]
        people = np.unique(prefs.user_index[np.any(new, axis=0)])
        if len(people) < 2:
            raise UserError(
                f"{prefs.source}: one held-out person has nobody to be compared with; hold out at least two "
                "(data.held_out_people), or skip the comparison (evaluation.models=[])"
            )
        pool = padded_rows(prefs.user_index, division.pool, people)
        everybody = np.arange(prefs.num_users)

        def pairs(mask: np.ndarray, whom: np.ndarray) -> Comparisons:
            return Comparisons.of(prefs, padded_rows(prefs.user_index, mask & untied, whom))

        return cls(
            prefs=prefs,
            division=division,
            counts=counts,
            answers=judged_count(counts),
            people=people,
            orders=tuple(_random_order(pool, max(*counts, 1), [seed, draw]) for draw in range(draws)),
            pool=pool,
            new={cell: pairs(m, people) for cell, m in division.tests.items() if cell.startswith("unseen")},
            known={
                cell: pairs(m, everybody) for cell, m in division.tests.items() if cell.startswith("seen")
            },
        )


def judged_count(counts: tuple[int, ...]) -> int:
    """The number of answers by which verdicts are given: the largest up to ten, else the smallest above.

    Raises:
      UserError: there is none but 0.
    """
    positive = [n for n in counts if n > 0]
    if not positive:
        raise UserError(
            "evaluation.counts: holds only 0, so nobody is asked anything; add a number such as 10"
        )
    return max((n for n in positive if n <= 10), default=min(positive))


def _random_order(pool: np.ndarray, length: int, seed: list[int]) -> np.ndarray:
    """The first `length` rows of a random order of each person's pool; int[U, length]."""
    shuffled = np.where(pool >= 0, np.random.default_rng(seed).random(pool.shape), np.inf)
    rows = np.take_along_axis(pool, np.argsort(shuffled, axis=1), axis=1)[:, :length]
    return np.pad(rows, ((0, 0), (0, length - rows.shape[1])), constant_values=-1)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one model predicted, person by person; NaN for people without a test in the cell.

    Attributes:
      accuracy, loss: n → float[U] on unseen people and seen prompts, mean over draws of random questions.
      chosen: n → float[U] with questions by information gain; None where the model has no Gaussian belief.
      cells: cell → float[U] (unseen people, after `answers` answers) or float[all people] (seen people).
      swapped: float[U], with another person's answers; swap_flips: share of predictions that turn.
      label_flips: float[U], share that turn when all of one's own answers are inverted.
      change: mean change of a predicted probability under the swap.
      fresh: float[U], accuracy in the main cell on comparisons of which no text was in a question, and the share that these are.
      cell_loss: cell → −log P of its answers, as `cells`.
      reliability: float[B, 3] of the main cell after `answers` answers: by bins of σ(|margin|) from ½ to 1, the sum of
        σ(|margin|), of right predictions and of comparisons.
    """

    accuracy: dict[int, np.ndarray]
    loss: dict[int, np.ndarray]
    chosen: dict[int, np.ndarray] | None
    cells: dict[str, np.ndarray]
    swapped: np.ndarray
    swap_flips: np.ndarray
    label_flips: np.ndarray
    change: float
    cell_loss: dict[str, np.ndarray]
    reliability: np.ndarray
    fresh: np.ndarray
    fresh_share: np.ndarray

    @classmethod
    def merged(cls, parts: "Sequence[Scores]", new: "Sequence[np.ndarray]") -> "Scores":
        """One model's scores in every fold as those of all people, each of whom was new in one.

        Args:
          new: float or int[U] of each fold, its people: the order in which they stand.
        """
        if len(parts) == 1:
            return parts[0]

        def joined(name: str) -> dict[int, np.ndarray]:
            return {n: np.concatenate([getattr(part, name)[n] for part in parts]) for n in parts[0].accuracy}

        def cells(name: str) -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {}
            for cell in CELLS:
                values = [getattr(part, name).get(cell) for part in parts]
                if all(value is None for value in values):
                    continue
                if cell.startswith("unseen"):
                    gaps = [np.full(len(people), np.nan) for people in new]
                    found[cell] = np.concatenate(
                        [gap if value is None else value for value, gap in zip(values, gaps, strict=True)]
                    )
                else:  # the same people in several folds: the mean over those in which they were fitted
                    found[cell] = _mean_of_numbers([value for value in values if value is not None])
            return found

        chosen = joined("chosen") if all(part.chosen is not None for part in parts) else None
        weights = np.array([len(people) for people in new], np.float64)
        return cls(
            accuracy=joined("accuracy"),
            loss=joined("loss"),
            chosen=chosen,
            cells=cells("cells"),
            swapped=np.concatenate([part.swapped for part in parts]),
            swap_flips=np.concatenate([part.swap_flips for part in parts]),
            label_flips=np.concatenate([part.label_flips for part in parts]),
            change=float(np.average([part.change for part in parts], weights=weights)),
            cell_loss=cells("cell_loss"),
            reliability=np.sum([part.reliability for part in parts], axis=0),
            fresh=np.concatenate([part.fresh for part in parts]),
            fresh_share=np.concatenate([part.fresh_share for part in parts]),
        )


def accuracy_after(fitted: FittedModel, table: ItemTable, protocol: Protocol, count: int) -> np.ndarray:
    """float[U] on unseen people and seen prompts after `count` random answers, mean over draws."""
    return _after(fitted, table, protocol, count)[0]


def _after(
    fitted: FittedModel, table: ItemTable, protocol: Protocol, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and loss of every person after `count` random answers, means over draws."""
    tests, accuracy, loss = protocol.new[MAIN], [], []
    for order in protocol.orders if count else protocol.orders[:1]:
        answers = Comparisons.of(protocol.prefs, order).first(count)
        margins = fitted.margins(table, fitted.adapt(table, answers), tests)
        accuracy.append(person_accuracy(margins, tests))
        loss.append(person_loss(margins, tests))
    return np.mean(accuracy, axis=0), np.mean(loss, axis=0)


def score_model(fitted: FittedModel, table: ItemTable, protocol: Protocol) -> Scores:
    """Replay people outside the fit and predict every cell."""
    tests, answers = protocol.new[MAIN], protocol.answers
    curve = {n: _after(fitted, table, protocol, n) for n in protocol.counts}
    swaps, reliability, fresh = [], [], []
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {cell: [] for cell in protocol.new}
    for draw, order in enumerate(protocol.orders):
        asked = Comparisons.of(protocol.prefs, order).first(answers)
        people = fitted.adapt(table, asked)
        for cell, pairs in protocol.new.items():
            margins = fitted.margins(table, people, pairs)
            parts[cell].append((person_accuracy(margins, pairs), person_loss(margins, pairs)))
            if cell == MAIN:
                reliability.append(reliability_of(margins, pairs))
                new_texts = fresh_texts(asked, pairs)
                left = dataclasses.replace(pairs, weight=pairs.weight * new_texts)
                fresh.append((person_accuracy(margins, left), person_mean(new_texts, pairs)))
        swaps.append(_swap(fitted, table, people, tests, draw))
    both = {cell: np.mean(values, axis=0) for cell, values in parts.items()}
    seen = fitted.seen() if protocol.known else None
    for cell, pairs in protocol.known.items():
        margins = fitted.margins(table, seen, pairs)
        both[cell] = np.stack([person_accuracy(margins, pairs), person_loss(margins, pairs)])
    return Scores(
        accuracy={n: values[0] for n, values in curve.items()},
        loss={n: values[1] for n, values in curve.items()},
        chosen=_chosen_questions(fitted, table, protocol),
        cells={cell: values[0] for cell, values in both.items()},
        swapped=np.mean([swap[0] for swap in swaps], axis=0),
        swap_flips=np.mean([swap[1] for swap in swaps], axis=0),
        label_flips=_label_flips(fitted, table, protocol),
        change=float(np.mean([swap[2] for swap in swaps])),
        cell_loss={cell: values[1] for cell, values in both.items()},
        reliability=np.mean(reliability, axis=0),
        fresh=_mean_of_numbers([accuracy for accuracy, _ in fresh]),
        fresh_share=np.mean([share for _, share in fresh], axis=0),
    )


def fresh_texts(asked: Comparisons, tests: Comparisons) -> np.ndarray:
    """bool[U, T]: neither text of the tested comparison is in one of the person's questions."""
    found = np.zeros(tests.weight.shape, bool)
    for side in (asked.chosen, asked.rejected):
        texts = np.where(asked.weight > 0, side, -1)
        for tested in (tests.chosen, tests.rejected):
            found |= (tested[:, :, None] == texts[:, None, :]).any(axis=2)
    return ~found


def _mean_of_numbers(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over rows of what is not NaN; NaN where all are."""
    stacked = np.stack(rows)
    count = np.sum(~np.isnan(stacked), axis=0)
    return np.where(count > 0, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def _label_flips(fitted: FittedModel, table: ItemTable, protocol: Protocol) -> np.ndarray:
    """Share of each person's predictions that turn when all their answers are turned."""
    tests = protocol.new[MAIN]
    given = Comparisons.of(protocol.prefs, protocol.orders[0]).first(protocol.answers)
    signs = [
        np.sign(fitted.margins(table, fitted.adapt(table, answers), tests))
        for answers in (given, dataclasses.replace(given, outcome=1 - given.outcome))
    ]
    return person_mean(signs[0] != signs[1], tests)


def _swap(
    fitted: FittedModel, table: ItemTable, people: Any, tests: Comparisons, draw: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Everybody's tests predicted with the state of the person before them in a random cyclic order.

    The tests move, not the states, so a state may be anything.
    """
    count = len(tests.weight)
    order = np.random.default_rng([7919, draw]).permutation(count)
    partner = np.empty(count, np.int64)
    partner[order] = np.roll(order, 1)
    own = fitted.margins(table, people, tests)[partner]
    moved = Comparisons(*(getattr(tests, field.name)[partner] for field in dataclasses.fields(tests)))
    others = fitted.margins(table, people, moved)
    back = np.argsort(partner)
    flips = person_mean(np.sign(own) != np.sign(others), moved)
    change = np.abs(np.tanh(0.5 * own) - np.tanh(0.5 * others)) * 0.5
    present = moved.weight > 0
    return person_accuracy(others, moved)[back], flips[back], float(change[present].mean())


def _chosen_questions(
    fitted: FittedModel, table: ItemTable, protocol: Protocol
) -> dict[int, np.ndarray] | None:
    """Accuracy with questions by expected information gain, for models whose belief about a person is Gaussian."""
    rule = getattr(fitted, "rule", None)
    if not isinstance(rule, GaussianRule):
        return None
    phi = fitted.features(table)  # pyright: ignore[reportAttributeAccessIssue]  a model with a rule is linear
    pool = Comparisons.of(protocol.prefs, protocol.pool)
    delta = (phi[pool.chosen] - phi[pool.rejected]) * pool.weight[..., None]
    prior = Belief.from_cov(rule.mean, np.linalg.inv(np.asarray(rule.precision, np.float64)))
    index = replay.chosen_order(prior, delta, pool.outcome, pool.weight > 0, max(protocol.counts), rule.lapse)
    rows = np.where(index >= 0, np.take_along_axis(protocol.pool, np.maximum(index, 0), axis=1), -1)
    answers, tests = Comparisons.of(protocol.prefs, rows), protocol.new[MAIN]
    states = {n: fitted.adapt(table, answers.first(n)) for n in protocol.counts}
    return {n: person_accuracy(fitted.margins(table, state, tests), tests) for n, state in states.items()}


def person_loss(margins: np.ndarray, pairs: Comparisons) -> np.ndarray:
    """Mean −log P of each person's answers, nats; NaN without pairs."""
    signed = np.asarray(margins, np.float64) * np.where(pairs.outcome > 0.5, 1.0, -1.0)
    return person_mean(np.logaddexp(0.0, -signed), pairs)


def reliability_of(margins: np.ndarray, pairs: Comparisons) -> np.ndarray:
    """float[B, 3] by bins of the confidence σ(|margin|): its sum, right predictions, comparisons."""
    present = pairs.weight > 0
    margin = np.asarray(margins, np.float64)[present]
    signed = margin * np.where(pairs.outcome[present] > 0.5, 1.0, -1.0)
    sure = 0.5 * (1 + np.tanh(0.5 * np.abs(margin)))
    right = np.where(signed == 0, 0.5, signed > 0)
    place = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return np.stack(
        [np.bincount(place, values, BINS) for values in (sure, right, np.ones_like(sure))], axis=1
    )
