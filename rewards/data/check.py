"""Describe a preference set: who compared what how often, how consistently, and with which habits."""

import json
from collections import Counter, defaultdict

import numpy as np

from rewards.data.leak import leak_check, wilson_interval
from rewards.files import JSONObject
from rewards.types import Preferences

__all__ = ["describe", "leak_check"]


def describe(prefs: Preferences) -> JSONObject:
    """Plain numbers (JSON values) about a preference set.

    Keys:
      users, items, prompts, comparisons, choice_events: counts over what the comparisons use; 0 users where no row
        says who chose.
      comparisons_per_user: min, q25, median, q75, max. choice_events_per_user: the same.
      ties: count and share.
      items_on_both_sides: share of items that are chosen in one comparison and rejected in another; a
        rendering that differs between the sides makes it 0.
      shown_first: share of comparisons won by what stood first, with a 95 % interval; None when not recorded.
      agreement: probability that two people who compared the same two items chose alike (ties left out, each
        person's first answer), with the number of such pairs of items and of people; None when there are
        none.
      retest: a person compared the same two items more than once: `cases` (person and pair of items),
        `inconsistent` (not always the same answer), `consistency` = 1 − inconsistent / cases.
      duplicates: rows equal to an earlier one in everything, recorded context included; they are not retests.
      notes: sentences on what will make this set hard to use.
    """
    users, rows_per_user = np.unique(prefs.user_index, return_counts=True)
    events = np.unique(np.stack([prefs.user_index, prefs.choice]), axis=1)
    tie = prefs.outcome == 0.5
    duplicate = duplicates(prefs)
    used = np.union1d(prefs.chosen, prefs.rejected)
    both = np.intersect1d(prefs.chosen[~tie], prefs.rejected[~tie])
    result = {
        "source": prefs.source,
        "users": len(users) if prefs.has_people else 0,
        "items": len(used),
        "prompts": len(np.unique(prefs.item_prompt[used])),
        "comparisons": prefs.num_comparisons,
        "choice_events": events.shape[1],
        "comparisons_per_user": _quantiles(rows_per_user),
        "choice_events_per_user": _quantiles(np.unique(events[0], return_counts=True)[1]),
        "ties": {"count": int(tie.sum()), "share": _share(int(tie.sum()), len(tie))},
        "items_on_both_sides": _share(len(both), len(used)),
        "shown_first": _shown_first(prefs, tie),
        "agreement": agreement(prefs, tie),
        "retest": _retest(prefs, tie, duplicate),
        "duplicates": int(duplicate.sum()),
    }
    return result | {"notes": _notes(result)}


def _quantiles(counts: np.ndarray) -> dict[str, float]:
    names = ("min", "q25", "median", "q75", "max")
    return (
        dict(zip(names, np.quantile(counts, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))
        if len(counts)
        else {}
    )


def _share(part: int, total: int) -> float:
    return part / total if total else 0.0


def duplicates(prefs: Preferences) -> np.ndarray:
    """bool[N], true where an earlier row is the same in person, items, outcome and every further column."""
    seen: set[str] = set()
    result = np.zeros(prefs.num_comparisons, bool)
    parts = (prefs.user_index, prefs.chosen, prefs.rejected, prefs.outcome)
    numbers = list(zip(*(part.tolist() for part in parts), strict=True))
    for n, key in enumerate(numbers):
        rest = [values[n] for values in prefs.columns.values()]
        text = json.dumps([key, rest], sort_keys=True, default=str)
        result[n] = text in seen
        seen.add(text)
    return result


def _shown_first(prefs: Preferences, tie: np.ndarray) -> JSONObject | None:
    column = prefs.columns.get("shown_first")
    if column is None:
        return None
    places = [place for place, tied in zip(column, tie, strict=True) if place is not None and not tied]
    if not places:
        return None
    first = sum(place == "chosen" for place in places)
    return {
        "chosen_share": first / len(places),
        "interval": wilson_interval(first, len(places)),
        "rows": len(places),
    }


def agreement(prefs: Preferences, tie: np.ndarray) -> JSONObject | None:
    """Σ over pairs of items of agreeing couples of people / Σ of couples: [C(a,2) + C(b,2)] / C(a+b,2)."""
    low, high = np.minimum(prefs.chosen, prefs.rejected), np.maximum(prefs.chosen, prefs.rejected)
    answers: dict[tuple[int, int], dict[int, bool]] = defaultdict(dict)
    for n in np.lexsort((prefs.choice, prefs.user_index)):
        if not tie[n]:
            people = answers[int(low[n]), int(high[n])]
            people.setdefault(int(prefs.user_index[n]), bool(prefs.chosen[n] == low[n]))
    alike = couples = pairs = 0
    for people in answers.values():
        if len(people) > 1:
            for_low = sum(people.values())
            against = len(people) - for_low
            alike += for_low * (for_low - 1) // 2 + against * (against - 1) // 2
            couples += len(people) * (len(people) - 1) // 2
            pairs += 1
    return {"rate": alike / couples, "item_pairs": pairs, "people_pairs": couples} if couples else None


def _retest(prefs: Preferences, tie: np.ndarray, duplicate: np.ndarray) -> JSONObject | None:
    answers: dict[tuple[int, int, int], Counter[int]] = defaultdict(Counter)
    for n in np.flatnonzero(~tie & ~duplicate):
        a, b = int(prefs.chosen[n]), int(prefs.rejected[n])
        answers[int(prefs.user_index[n]), min(a, b), max(a, b)][a] += 1
    repeated = [votes for votes in answers.values() if votes.total() > 1]
    if not repeated:
        return None
    wavering = sum(len(votes) > 1 for votes in repeated)
    return {"cases": len(repeated), "inconsistent": wavering, "consistency": 1 - wavering / len(repeated)}


def _notes(result: JSONObject) -> list[str]:
    notes = []
    if not result["users"]:
        notes.append(
            "no column says who chose: good for chorus train sft and dpo; people's tastes (chorus rewards fit) need "
            "user_id (--user-column)"
        )
    if result["users"] == 1:
        notes.append("one person only: a prior over people and a split by person need more")
    if result["ties"]["share"] == 1:
        notes.append("every comparison is a tie: nothing can be learned from it")
    if result["duplicates"]:
        notes.append(
            f"{result['duplicates']} rows repeat an earlier row exactly; drop them if they are copies"
        )
    shown = result["shown_first"]
    if shown and not shown["interval"][0] <= 0.5 <= shown["interval"][1]:
        notes.append(f"what stands first wins {shown['chosen_share']:.1%} of the time: an order effect")
    if result["users"] and result["comparisons_per_user"] and result["comparisons_per_user"]["median"] < 5:
        notes.append("fewer than five comparisons for half of the people: little can be said about each")
    return notes
