"""Read completions that are to be scored: from a file of completions, or both sides of a preference file.

They become a `Preferences` table in which a row with one completion is a comparison of it with itself, so that
encoders and columns read both kinds of file alike. Nobody chose, and every row has items of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewards.data import schema, sources
from rewards.data.schema import RowError
from rewards.data.sources import Source
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import NOBODY, Preferences, Prompt

FIELDS = ("prompt", "completion", "messages", "chosen", "rejected", "user_id", "outcome")
FEATURES = ("completion_features", "chosen_features", "rejected_features")


def read_completions(
    path: Source, split: str = "train", columns: Mapping[str, str] | None = None, *, texts: bool = False
) -> Preferences:
    """The table alone; see `read_records`."""
    return read_records(path, split, columns, texts=texts)[0]


def read_records(
    path: Source, split: str = "train", columns: Mapping[str, str] | None = None, *, texts: bool = False
) -> tuple[Preferences, list[JSONObject]]:
    """Read and check completions, with the records they came from.

    Args:
      path: as in `rewards.data.read.read_preferences`; `-` is standard input. columns: our names → the source's.
      texts: whether rows may be plain texts (`text`), completions of nothing.
    Returns:
      the table, in file order, and one record a comparison of it.
    Raises:
      UserError: one line with source, row, field, value and fix; it says how many more rows are bad.
    """
    source = sources.name_of(path)
    numbers: list[int] = []
    records: list[JSONObject] = []
    parsed: list[tuple[Prompt, dict[str, str], dict[str, np.ndarray]]] = []
    problems: list[tuple[int, RowError]] = []
    width: int | None = None
    for number, record in sources.open_source(path, split, columns):
        try:
            fields = schema.row_object(record)
            row = schema.parse_completions(fields, texts=texts)
            schema.parse_attributes(_both_sides(fields.get("attributes")))
            width = _same_width(row, width, first=not parsed)
        except RowError as error:
            problems.append((number, error))
            continue
        numbers.append(number)
        records.append(dict(fields))
        parsed.append(row)
    schema.raise_first(source, problems)
    if not records:
        raise UserError(f"{source}: holds no rows; give at least one prompt with a completion")
    return _table(source, numbers, records, parsed), records


def _same_width(row: tuple[Any, dict[str, str], dict[str, np.ndarray]], width: int | None, *, first: bool):
    """Width of the features, the same in all rows; 0 for none."""
    _, texts, features = row
    widths = {len(features[field]) if field in features else 0 for field in texts}
    if len(widths) > 1 or (not first and widths != {width}):
        raise RowError(
            f"{next(iter(texts))}_features",
            f"widths {sorted(widths | ({width} if width is not None else set()))} in one file (0 is none); give "
            "every completion features of one width, or none",
        )
    return widths.pop()


def _table(path: str, numbers: list[int], records: list[JSONObject], parsed: list[Any]) -> Preferences:
    prompts: dict[Prompt, int] = {}
    item_prompt: list[int] = []
    item_text: list[str] = []
    item_features: list[np.ndarray] = []
    sides: list[tuple[int, int]] = []
    for prompt, texts, features in parsed:
        first = len(item_text)
        item_text += texts.values()
        item_prompt += [prompts.setdefault(prompt, len(prompts))] * len(texts)
        item_features += [features[field] for field in texts if field in features]
        sides.append((first, len(item_text) - 1))
    names = dict.fromkeys(name for record in records for name in record)
    columns = {
        name: [record.get(name) for record in records] for name in names if name not in FIELDS + FEATURES
    }
    if "attributes" in columns:
        columns["attributes"] = [_both_sides(value) for value in columns["attributes"]]
    chosen, rejected = np.array(sides, np.int32).T
    count = len(records)
    return Preferences(
        prompts=tuple(prompts),
        item_prompt=np.array(item_prompt, np.int32),
        item_text=tuple(item_text),
        item_features=np.stack(item_features) if item_features else None,
        user_ids=(NOBODY,),
        user_index=np.zeros(count, np.int32),
        chosen=chosen,
        rejected=rejected,
        outcome=np.full(count, 0.5, np.float32),
        choice=np.arange(count, dtype=np.int32),
        row=np.array(numbers, np.int32),
        columns=columns,
        source=path,
    )


def _both_sides(value: object) -> object:
    """Attributes of one `completion` as those of both sides of a comparison with itself."""
    if isinstance(value, Mapping) and "completion" in value:
        return {**value, "chosen": value["completion"], "rejected": value["completion"]}
    return value
