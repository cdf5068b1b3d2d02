"""The columns of a preference file, and how a misspelt one is noticed."""

import logging
from collections.abc import Iterable

from rewards.errors import UserError, nearest

_LOG = logging.getLogger("chorus")

REQUIRED = ("prompt", "chosen", "rejected", "user_id")
OWN = (*REQUIRED, "chosen_features", "rejected_features", "outcome")
"""Columns that become fields of `Preferences`; every other column is kept in `Preferences.columns`."""
OPTIONAL = (
    *("item_id", "chosen_id", "rejected_id", "shown_first", "frame", "repeat_of", "reason", "hint"),
    *("attributes", "timestamp", "choice_context"),
)
KNOWN = (*OWN, *OPTIONAL)


def naming(ours: str) -> str:
    """How one says which column of the source holds what we call `ours`."""
    return f"say which column holds it ({'user' if ours == 'user_id' else ours}_column)"


def check_columns(names: Iterable[str], user_column: str, source: str, *, people: bool = True) -> None:
    """Refuse a file whose columns cannot be right: a required one missing, or a misspelling of a known one.

    `people` says whether the column that says who chose is required.

    A column that nearly spells a known one is refused only where the known one is absent: then its values
    would be ignored without a word. With both present (`item_idx` beside `item_id`) it is an extra column
    like any other.
    """
    if user_column in OWN and user_column != "user_id":
        raise UserError(
            f"user_column {user_column!r}: holds something else; name the column that says who chose"
        )
    present = [str(name) for name in names]
    known = [user_column if name == "user_id" else name for name in KNOWN]
    for name in present:
        if name in known:
            continue
        for right in known:
            if right not in present and _nearly_spells(name, right):
                raise UserError(
                    f"{source}: column {name!r} is unknown; rename it to {right!r} if that is what it holds"
                )
    alike = {name: nearest(name, known) for name in present if name not in known}
    if spoken := [f"{name!r} (most like {right!r})" for name, right in alike.items() if right is not None]:
        _LOG.warning(f"note: {source}: columns without a meaning of their own here: {', '.join(spoken)}")
    featured = "chosen_features" in present and "rejected_features" in present
    needed = () if featured else ("chosen", "rejected")
    needed += (user_column,) if people else ()
    for name in needed:
        if name in present:
            continue
        others = ", ".join(present) or "none"
        fix = "name the column that says who chose (user_column)" if name == user_column else naming(name)
        raise UserError(f"{source}: column {name!r} is missing (columns: {others[:200]}); {fix}")


def _nearly_spells(name: str, right: str) -> bool:
    """The same letters up to case and separators, or one slip (two in long names), a swap of neighbours
    included.
    """

    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalnum())

    short, goal = plain(name), plain(right)
    return slips(short, goal) <= (0 if len(goal) < 4 else 1 if len(goal) < 8 else 2)


def slips(a: str, b: str) -> int:
    """Optimal string alignment distance (insert, delete, replace, swap neighbours).

    Own code: difflib's ratio cannot tell `prompt_id`, a good extra column, from a misspelt `prompt`.
    """
    if abs(len(a) - len(b)) > 2:
        return 3
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        line = [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, line[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            line.append(cost)
        before, last = last, line
    return last[-1]
