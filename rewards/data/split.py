"""Splits that do not leak: by person, by prompt, by time within a person; never by pair.

Membership comes from hashes of the names, so it depends on the seed and the set of people (or prompts)
alone, not on the order of the file, and is the same on every machine.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from rewards.errors import UserError
from rewards.types import Preferences


def split_people(prefs: Preferences, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of the people, each with all comparisons.

    The round(held_out · U) people with the smallest sha256(f"{seed}:{user_id}") are held out; U counts people
    with at least one comparison.

    Args:
      held_out: fraction in [0, 1); 0 holds nobody out.
    Returns:
      (train_mask, heldout_mask), bool[N] each, complements of one another.
    Raises:
      UserError: the fraction is out of range or leaves one of the sides without people.
    """
    present = np.unique(prefs.user_index)
    keys = [f"{seed}:{prefs.user_ids[user]}" for user in present]
    held = present[_smallest(keys, _count(held_out, len(present), "people", prefs.source))]
    mask = np.isin(prefs.user_index, held)
    return ~mask, mask


def people_folds(prefs: Preferences, folds: int, seed: int) -> np.ndarray:
    """int[U], the fold of every person in the user table; people are dealt out in the order of their hashes.

    Raises:
      UserError: fewer than two people a fold, whose answers could not be swapped.
    """
    check_folds(prefs, folds)
    present = np.unique(prefs.user_index)
    order = _smallest([f"{seed}:{prefs.user_ids[user]}" for user in present], len(present))
    fold = np.zeros(prefs.num_users, np.int64)
    fold[present[order]] = np.arange(len(present)) % folds
    return fold


def check_folds(prefs: Preferences, folds: int) -> None:
    """Refuse fewer than two people a fold.

    Raises:
      UserError: names the people there are.
    """
    people = len(np.unique(prefs.user_index))
    if not 2 <= folds <= people // 2:
        most = people // 2
        fix = (
            f"give from 2 to {most} folds"
            if most > 2
            else "give 2"
            if most == 2
            else "give 1, or bring more people"
        )
        raise UserError(
            f"{prefs.source}: {folds} folds of {people} people; {fix}, two people each at least (evaluation.folds)"
        )


def keep_people(prefs: Preferences, min_comparisons: int, max_people: int | None) -> Preferences:
    """Only the comparisons of people with `min_comparisons` at least, and of `max_people` of these at most.

    Who stays when there are more depends on the names alone (smallest sha256), not on a seed.
    Raises:
      UserError: fewer than two people are left.
    """
    counts = np.bincount(prefs.user_index, minlength=prefs.num_users)
    people = np.flatnonzero(counts >= max(min_comparisons, 1))
    if len(people) < 2:
        raise UserError(
            f"{prefs.source}: {len(people)} people with {min_comparisons} comparisons or more; lower "
            "data.min_comparisons"
        )
    if max_people is not None and len(people) > max_people:
        people = people[_smallest([f"keep:{prefs.user_ids[user]}" for user in people], max_people)]
    kept = np.isin(prefs.user_index, people)
    return prefs if kept.all() else prefs.select(kept)


def split_prompts(prefs: Preferences, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of the prompts, each with all comparisons of all people; as `split_people`
    otherwise.

    A chat prompt is hashed as the JSON list of its (role, content) pairs.
    """
    comparison_prompt = prefs.item_prompt[prefs.chosen]
    present = np.unique(comparison_prompt)
    keys = [f"{seed}:{prompt_text(prefs.prompts[prompt])}" for prompt in present]
    held = present[_smallest(keys, _count(held_out, len(present), "prompts", prefs.source))]
    mask = np.isin(comparison_prompt, held)
    return ~mask, mask


def held_out_labels(labels: Sequence[str], held_out: float, *, seed: int = 0) -> np.ndarray:
    """bool[N], true on all rows of the round(held_out · L) labels, one at least, with the smallest hash; L counts labels."""
    distinct = list(dict.fromkeys(labels))
    count = min(max(round(held_out * len(distinct)), 1), len(distinct) - 1)
    held = {distinct[place] for place in _smallest([f"{seed}:{label}" for label in distinct], count)}
    return np.array([label in held for label in labels])


def last_choices(prefs: Preferences, n: int) -> np.ndarray:
    """bool[N], true on each person's last `n` choice events (all rows of an event; everything if there are
    fewer).

    Events are counted among the comparisons in `prefs`, so a selection is handled as the person's whole
    record.
    """
    if n < 0:
        raise UserError(f"last_choices {n}: must be 0 or more")
    event, inverse = np.unique(np.stack([prefs.user_index, prefs.choice]), axis=1, return_inverse=True)
    inverse = inverse.reshape(-1)
    # Events come sorted by (user, choice): the distance to the end of the user's block is the rank from the
    # end.
    block_end = np.searchsorted(event[0], event[0], side="right")
    from_end = block_end - 1 - np.arange(event.shape[1])
    return (from_end < n)[inverse]


def prompt_text(prompt: object) -> str:
    """A prompt as one string; messages as a JSON list."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _smallest(keys: list[str], count: int) -> np.ndarray:
    """Indices of the `count` keys with the smallest hash; names differ, so hashes do."""
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__)[:count], dtype=np.int64)


def _count(held_out: float, total: int, what: str, source: str) -> int:
    if not 0 <= held_out < 1:
        raise UserError(f"held_out {held_out}: must be a fraction from 0 up to, not including, 1")
    count = round(held_out * total)
    if held_out > 0 and not 0 < count < total:
        raise UserError(
            f"{source}: holding out {held_out:g} of {total} {what} leaves one side empty; "
            f"change the fraction or bring more {what}"
        )
    return count
