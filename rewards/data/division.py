"""Four cells: seen or unseen person × seen or unseen prompt. People and prompts are divided, never comparisons.

A model that saw a person's other answers, or a prompt's other answers, is tested apart from one that saw neither;
a division by comparisons would leave both in the fit.

Letters in shapes: N comparisons.
"""

import dataclasses

import numpy as np

from rewards.data.split import (
    held_out_labels,
    last_choices,
    people_folds,
    prompt_text,
    split_people,
    split_prompts,
)
from rewards.errors import UserError
from rewards.types import Preferences

MAIN = "unseen_seen"
CELLS = ("seen_seen", "seen_unseen", MAIN, "unseen_unseen")
"""person_prompt: whether the person, and whether the prompt, was part of the fit."""


@dataclasses.dataclass(frozen=True)
class Division:
    """Who and what is kept back.

    Attributes:
      training: bool[N], what models are fitted on.
      pool: bool[N], what people outside the fit may be asked.
      tests: cell → bool[N], what is predicted; cells in `missing` are not here.
      missing: cell → why it does not exist.
    """

    training: np.ndarray
    pool: np.ndarray
    tests: dict[str, np.ndarray]
    missing: dict[str, str]


def divide(
    prefs: Preferences,
    *,
    held_out_people: float,
    held_out_prompts: float,
    split_seed: int,
    last: int,
    distinct_texts: bool = False,
    held_out_texts: float = 0.0,
) -> Division:
    """Hold out people, prompts (or single texts), and everybody's `last` choices on the others.

    Args:
      distinct_texts: use each text once a person, in time order, and leave out the other comparisons. Where pairs
        were made from ratings, a text that comes twice carries one rating over from question to test, and many pairs
        of few ratings pass for many answers.
      held_out_texts: where no prompt is held out, or there is one alone, this share of the texts instead: a comparison
        that has one of them stands in the cells of new texts, and is never fitted on or asked.
    Raises:
      UserError: a share that leaves one side without people.
    """
    _, new = split_people(prefs, held_out_people, split_seed)
    kept = _Kept.of(prefs, held_out_prompts, held_out_texts, split_seed, distinct_texts)
    return kept.without(prefs, new, last)


def divide_in_folds(
    prefs: Preferences,
    folds: int,
    *,
    held_out_prompts: float,
    split_seed: int,
    last: int,
    distinct_texts: bool = False,
    held_out_texts: float = 0.0,
) -> tuple[Division, ...]:
    """As `divide`, once for every fold of people: each person is held out once.

    Raises:
      UserError: fewer than two people a fold.
    """
    kept = _Kept.of(prefs, held_out_prompts, held_out_texts, split_seed, distinct_texts)
    fold = people_folds(prefs, folds, split_seed)
    return tuple(kept.without(prefs, fold[prefs.user_index] == number, last) for number in range(folds))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What is left out whoever is held out: comparisons that are not used, and those on new prompts or texts."""

    used: np.ndarray
    unseen: np.ndarray
    reason: str

    @classmethod
    def of(
        cls, prefs: Preferences, prompts: float, texts: float, split_seed: int, distinct_texts: bool
    ) -> "_Kept":
        unseen, reason = _unseen_prompts(prefs, prompts, split_seed)
        if reason and texts > 0:
            unseen, reason = _unseen_texts(prefs, texts, split_seed)
        used = _each_text_once(prefs, ~unseen) if distinct_texts else np.ones(prefs.num_comparisons, bool)
        return cls(used, unseen, reason)

    def without(self, prefs: Preferences, new: np.ndarray, last: int) -> Division:
        """The division in which the people of the comparisons under `new` are held out."""
        known, new, unseen, usual = (self.used & mask for mask in (~new, new, self.unseen, ~self.unseen))
        final = np.zeros(prefs.num_comparisons, bool)
        final[usual] = last_choices(prefs.select(usual), last)
        tests = {"seen_seen": known & final, MAIN: new & final}
        tests |= {"seen_unseen": known & unseen, "unseen_unseen": new & unseen}
        training, pool = known & ~final & ~unseen, new & ~final & ~unseen
        # Somebody with nothing in the fit is no seen person; answers on other prompts must exist to carry over.
        fitted, asked = (np.isin(prefs.user_index, prefs.user_index[part]) for part in (training, pool))
        for cell, present in (("seen_seen", fitted), ("seen_unseen", fitted), ("unseen_unseen", asked)):
            tests[cell] = tests[cell] & present
        missing: dict[str, str] = {}
        if self.reason:
            missing = {"seen_unseen": self.reason, "unseen_unseen": self.reason}
        for cell in CELLS:
            if cell not in missing and not np.any(tests[cell] & (prefs.outcome != 0.5)):
                missing[cell] = "no untied comparison falls into it"
        if MAIN in missing:
            raise UserError(
                f"{prefs.source}: no held-out person has a last choice that is not a tie; hold out more people "
                "(data.held_out_people)"
            )
        kept = {cell: tests[cell] for cell in CELLS if cell not in missing}
        return Division(training, pool, kept, missing)


def _unseen_prompts(prefs: Preferences, share: float, seed: int) -> tuple[np.ndarray, str]:
    """bool[N] of comparisons on held-out prompts, and why there are none."""
    nothing = np.zeros(prefs.num_comparisons, bool)
    count = len(np.unique(prefs.item_prompt[prefs.chosen]))
    if count == 1:
        return nothing, "the data has one prompt"
    if share == 0:
        return nothing, "no prompts were held out"
    if not 0 < round(share * count) < count:
        return nothing, f"holding out {share:g} of {count} prompts leaves one side empty"
    return split_prompts(prefs, share, seed)[1], ""


def _unseen_texts(prefs: Preferences, share: float, seed: int) -> tuple[np.ndarray, str]:
    """bool[N] of comparisons with a held-out text, and why there are none."""
    texts = np.unique(np.concatenate([prefs.chosen, prefs.rejected]))
    if not 0 < round(share * len(texts)) < len(texts):
        nothing = np.zeros(prefs.num_comparisons, bool)
        return nothing, f"holding out {share:g} of {len(texts)} texts leaves one side empty"
    names = [
        f"{prompt_text(prefs.prompts[prefs.item_prompt[text]])}\n{prefs.item_text[text]}" for text in texts
    ]
    held = texts[held_out_labels(names, share, seed=seed)]
    return np.isin(prefs.chosen, held) | np.isin(prefs.rejected, held), ""


def _each_text_once(prefs: Preferences, usual: np.ndarray) -> np.ndarray:
    """bool[N]: comparisons taken in every person's order while neither of their texts was in one taken before.

    Those under `usual` first: a held-out text must not use up the text that it was compared with.
    """
    taken: set[tuple[int, int]] = set()
    kept = np.zeros(prefs.num_comparisons, bool)
    order = np.lexsort((np.arange(prefs.num_comparisons), prefs.choice, ~usual, prefs.user_index))
    for row in order.tolist():
        user = int(prefs.user_index[row])
        texts = {(user, int(prefs.chosen[row])), (user, int(prefs.rejected[row]))}
        if not taken & texts:
            taken |= texts
            kept[row] = True
    return kept
