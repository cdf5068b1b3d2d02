"""What the crossed model reads of comparisons: answers added up, in an order of their own, in folds of people.

An answer given twice is one of weight 2, a pair stands the way round in which its first item comes first in the table,
and people and answers stand in an order that their names and contents give, so that a fit depends on neither the order
of the rows nor the way a pair was shown.

Letters in shapes: N answers, U people, B episodes, n context answers (padded), T targets (padded).
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from rewards.data.order import by_content
from rewards.methods.training import Problem


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers by person and time; items are those of the reduced problem.

    Attributes:
      user: place of the person, 0 … U − 1, rising. order: int[U], the user index of each place.
      outcome: in favour of `chosen`. fold: of the answer's person, the same for all of theirs.
    """

    user: Int[np.ndarray, " N"]
    chosen: Int[np.ndarray, " N"]
    rejected: Int[np.ndarray, " N"]
    outcome: Float[np.ndarray, " N"]
    weight: Float[np.ndarray, " N"]
    fold: Int[np.ndarray, " N"]
    order: Int[np.ndarray, " U"]
    num_folds: int

    @property
    def num_people(self) -> int:
        return len(self.order)

    @classmethod
    def of(cls, problem: Problem, folds: int, seed: int) -> "Answers":
        """Answers of weight > 0; as many folds as there are people at most, and two at least."""
        data, training = problem.data, problem.training
        place, _ = by_content(training)
        first = np.minimum(data.chosen, data.rejected)
        second = np.maximum(data.chosen, data.rejected)
        outcome = np.where(data.chosen == first, data.outcome, 1 - data.outcome).astype(np.float64)
        kept = problem.weight > 0
        keys = np.stack([place[data.user], training.choice, first, second], axis=1)[kept]
        # Equal answers of one person at one time differ in outcome alone.
        rows, index = np.unique(
            np.column_stack([keys, np.round(outcome[kept] * 2**20).astype(np.int64)]),
            axis=0,
            return_inverse=True,
        )
        index = index.reshape(-1)
        weight = np.bincount(index, problem.weight[kept])
        people, user = np.unique(rows[:, 0], return_inverse=True)
        at = np.argsort(place)[people]
        count = max(2, min(folds, len(people)))
        fold_of = np.random.default_rng([seed, 17]).permutation(len(people)) % count
        return cls(
            user.reshape(-1),
            rows[:, 2],
            rows[:, 3],
            rows[:, 4] / 2**20,
            weight,
            fold_of[user.reshape(-1)],
            at,
            count,
        )

    def rows_of(self) -> list[np.ndarray]:
        """Row numbers of each person, in time order."""
        return np.split(np.arange(len(self.user)), np.flatnonzero(np.diff(self.user)) + 1)


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Some answers of a person and others to be predicted from them, no text in both; −1 pads.

    Attributes:
      user: int[B], places. context: int[B, n]; target: int[B, T]: rows of `Answers`.
      share: float[B], weight of each target, so that a person's episodes together count all their answers once.
    """

    user: Int[np.ndarray, " B"]
    context: Int[np.ndarray, "B n"]
    target: Int[np.ndarray, "B T"]
    share: Float[np.ndarray, " B"]


def draw_episodes(
    answers: Answers, seed: int, *, per_person: int, most_context: int, most_targets: int
) -> Episodes:
    """Random targets of every person, and as context a random number of the answers that share no text with them."""
    rng = np.random.default_rng([seed, 43])
    user, context, target, share = [], [], [], []
    for rows in answers.rows_of():
        if len(rows) < 2:
            continue
        own = []
        for _ in range(per_person):
            shuffled = rng.permutation(rows)
            tests = shuffled[: min(most_targets, max(1, len(rows) // 3))]
            given = shuffled[~_shares_text(answers, shuffled, tests)]
            size = rng.integers(1, most_context, endpoint=True)
            own.append((tests, given[:size]))
        total = sum(answers.weight[tests].sum() for tests, _ in own)
        for tests, given in own:
            user.append(answers.user[rows[0]])
            context.append(_padded(given, most_context))
            target.append(_padded(tests, most_targets))
            share.append(answers.weight[rows].sum() / total)
    width = (0, most_context), (0, most_targets)
    return Episodes(
        np.array(user, np.int64),
        np.array(context, np.int64) if context else np.zeros(width[0], np.int64),
        np.array(target, np.int64) if target else np.zeros(width[1], np.int64),
        np.array(share),
    )


def earlier_and_later(answers: Answers, *, most_context: int, most_targets: int) -> Episodes:
    """What everybody answered first, and what last, each text once: how a new person is met.

    A third of such answers, at least one, is predicted; people with fewer than two are left out.
    """
    user, context, target = [], [], []
    for rows in answers.rows_of():
        taken: set[int] = set()
        distinct = []
        for row in rows.tolist():
            texts = {int(answers.chosen[row]), int(answers.rejected[row])}
            if not taken & texts:
                taken |= texts
                distinct.append(row)
        if len(distinct) < 2:
            continue
        tests = min(most_targets, max(1, len(distinct) // 3))
        user.append(answers.user[rows[0]])
        context.append(_padded(np.array(distinct[:-tests][:most_context]), most_context))
        target.append(_padded(np.array(distinct[-tests:]), most_targets))
    return Episodes(
        np.array(user, np.int64),
        np.array(context, np.int64).reshape(-1, most_context),
        np.array(target, np.int64).reshape(-1, most_targets),
        np.ones(len(user)),
    )


def _shares_text(answers: Answers, rows: np.ndarray, tests: np.ndarray) -> np.ndarray:
    texts = np.concatenate([answers.chosen[tests], answers.rejected[tests]])
    return np.isin(answers.chosen[rows], texts) | np.isin(answers.rejected[rows], texts)


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows[:length], (0, length - min(len(rows), length)), constant_values=-1)
