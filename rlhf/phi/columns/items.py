"""What a column reads: the items of a `Preferences` table, with the values of the data's other columns.

Letters in shapes: I items, c outputs of one column.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from rewards import hashed
from rewards.errors import UserError
from rewards.files import JSONObject, cache_dir
from rewards.types import Preferences, Prompt, Values, as_messages

Text = str | list[dict[str, str]]
"""A prompt or a completion as TRL has it: plain, or messages."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One column over all items.

    Attributes:
      names: c labels; one, the column's own name, unless a model has several outputs.
      values: float64[I, c], raw and not normalised; NaN where the column says nothing about an item.
      report: JSON, what was measured about the column itself.
      off: why the column must not be used; None when it may.
    """

    names: tuple[str, ...]
    values: np.ndarray
    report: JSONObject = dataclasses.field(default_factory=dict)
    off: str | None = None


class Column(Protocol):
    """A reward that exists already.

    `identity` is the hash of what gives its numbers their meaning (weights, source, instructions); a stored
    basis refuses a column with another one.
    """

    def identity(self) -> str: ...

    def parts(self) -> dict[str, str]:
        """What a run reads of it: hashes by name, for the message about one that changed."""
        ...

    def outputs(self) -> tuple[str, ...]:
        """Names of the c outputs; one, the column's own, unless a model has several."""
        ...

    def measure(self, prefs: Preferences, *, fitting: bool) -> Measured:
        """Values of every item; `fitting` asks also for the checks that may switch the column off."""
        ...


def first_rows(prefs: Preferences) -> np.ndarray:
    """int[I]: position of the first comparison that holds each item, −1 where none does."""
    first = np.full(prefs.num_items, -1, np.int64)
    for side in (prefs.rejected, prefs.chosen):
        items, where = np.unique(side, return_index=True)
        earlier = (first[items] < 0) | (where < first[items])
        first[items] = np.where(earlier, where, first[items])
    return first


def place(prefs: Preferences, first: np.ndarray, item: int) -> str:
    """Where an item stands, for messages."""
    if first[item] >= 0:
        return f"{prefs.source} row {prefs.row[first[item]]}"
    return f"{prefs.source} item {item}"


def data_column(prefs: Preferences, name: str, first: np.ndarray, *, constant: bool) -> Values:
    """Values of a data column for every item, from the first comparison that holds it; None where none does.

    Args:
      constant: insist that all comparisons with an item agree, because the value is going to be used.
    Raises:
      UserError: they do not.
    """
    column = prefs.columns[name]
    values = [column[row] if row >= 0 else None for row in first]
    if constant:
        for row, (chosen, rejected) in enumerate(zip(prefs.chosen, prefs.rejected, strict=True)):
            for item in (chosen, rejected):
                if column[row] != values[item]:
                    raise UserError(
                        f"{prefs.source} rows {prefs.row[first[item]]} and {prefs.row[row]}: column {name!r} differs "
                        "for one completion, so a reward cannot use it; give every completion one value"
                    )
    return values


def text_of(completion: Text) -> str:
    """Text of a completion as TRL hands it over: a string, or messages of which the last one counts."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def as_trl(prompt: Prompt, completion: str) -> tuple[Text, Text]:
    """(prompt, completion) in TRL's format: strings, or both as lists of messages."""
    if isinstance(prompt, str):
        return prompt, completion
    return as_messages(prompt), [{"role": "assistant", "content": completion}]


def groups_of(prefs: Preferences) -> list[np.ndarray]:
    """Items of each prompt that has any."""
    order = np.argsort(prefs.item_prompt, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(prefs.item_prompt[order])) + 1) if len(order) else []


def texts_of(prefs: Preferences) -> list[list[Prompt]]:
    """[prompt, completion] of every item, as JSON: what a cache is looked up by."""
    return [[prefs.prompts[p], text] for p, text in zip(prefs.item_prompt, prefs.item_text, strict=True)]


def remembered(content: object, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """`compute()`, or what it gave before for the same `content` (JSON), from the cache folder."""
    return hashed.cached(cache_dir() / "columns", content, compute)
