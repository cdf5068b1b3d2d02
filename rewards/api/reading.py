"""`rewards.read`: preferences of any source, with the division into what is fitted on and what is judged on."""

import dataclasses
import html

import numpy as np

from rewards.data.read import read_preferences
from rewards.data.sources import Source
from rewards.data.split import keep_people, split_people, split_prompts
from rewards.types import Preferences


@dataclasses.dataclass(frozen=True, repr=False)
class PreferenceSet:
    """Preferences divided once, so that nobody is judged on what was fitted.

    Attributes:
      training: what models are fitted on.
      held_out: comparisons of people (without people: on prompts) that no fit has seen; may be empty.
      all: both together, in the order of the source.
      by: what was divided: "people", "prompts", or "nothing".
    """

    training: Preferences
    held_out: Preferences
    all: Preferences
    by: str

    def __repr__(self) -> str:
        return f"PreferenceSet(training={self.training!r}, held_out={self.held_out!r}, by={self.by!r})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{part.num_comparisons:,}</td><td>{_people(part)}</td></tr>"
            for name, part in (("training", self.training), ("held out", self.held_out))
        )
        caption = html.escape(f"{self.all.source}, divided by {self.by}")
        return f"<table><caption>{caption}</caption><tr><th></th><th>comparisons</th><th>people</th></tr>{rows}</table>"


def read(
    source: Source,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    split: str = "train",
    user_column: str = "user_id",
    prompt_column: str = "prompt",
    chosen_column: str = "chosen",
    rejected_column: str = "rejected",
    min_comparisons: int = 1,
    max_people: int | None = None,
) -> PreferenceSet:
    """Read preferences, check every row, and hold people out.

    Comparisons that do not say who chose are ordinary pairs: they train policies for everybody, and whole prompts are
    held out instead of people (nothing where there are too few prompts).

    Args:
      source: the name of a shipped set ("electricity", "train-trips"), a .jsonl, .json or .parquet file, `hf:NAME`,
        `tfds:NAME`; or a table in memory: a list of dicts, a dict of lists, a pandas DataFrame, a pyarrow Table, a
        Hugging Face Dataset or DatasetDict.
      held_out: share of the people whose comparisons are never fitted on, in [0, 1); they play the new users.
      seed: of the division, which depends on it and on the people's names alone.
      split: split of a source that has several.
      user_column, prompt_column, chosen_column, rejected_column: what the source calls these columns.
      min_comparisons: people with fewer are left out of both parts.
      max_people: keep at most so many, drawn by a hash of their names; None keeps all.
    Returns:
      the parts as `Preferences`, over one table of prompts and completions.
    Raises:
      UserError: one line with source, row, field, value and fix.
    """
    columns = {"prompt": prompt_column, "chosen": chosen_column, "rejected": rejected_column}
    given = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    prefs = read_preferences(source, split, user_column=user_column, columns=given, people=False)
    return divide(prefs, held_out=held_out, seed=seed, min_comparisons=min_comparisons, max_people=max_people)


def divide(
    prefs: Preferences,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    min_comparisons: int = 1,
    max_people: int | None = None,
) -> PreferenceSet:
    """Hold people out of preferences that are read already; see `read`."""
    if prefs.has_people:
        prefs = keep_people(prefs, min_comparisons, max_people)
        _, held = split_people(prefs, held_out, seed)
        by = "people" if held_out else "nothing"
    else:
        num_prompts = len(np.unique(prefs.item_prompt[prefs.chosen]))
        divisible = 0 < round(held_out * num_prompts) < num_prompts
        held = split_prompts(prefs, held_out if divisible or not 0 <= held_out < 1 else 0.0, seed)[1]
        by = "prompts" if divisible else "nothing"
    return PreferenceSet(prefs.select(~held), prefs.select(held), prefs, by)


def _people(prefs: Preferences) -> str:
    return f"{len(np.unique(prefs.user_index)):,}" if prefs.has_people else "not named"
