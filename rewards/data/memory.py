"""Rows that are in memory already: lists, columns, pandas, pyarrow, Hugging Face datasets → numbered records.

None of those libraries is imported here: a table is known by what it can do.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewards.errors import UserError
from rewards.files import JSONObject

MEMORY = "data"
"""How messages call a source that has no name."""
Table = Any
"""A list of dicts, a dict of lists, a pandas DataFrame, a pyarrow Table, a Hugging Face Dataset or DatasetDict."""


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Records that were read already, with their numbers and the name of where they came from."""

    name: str
    records: list[tuple[int, object]]


def rows_of(table: Table, split: str = "train") -> list[tuple[int, object]]:
    """Records of a table, numbered from 1; a text that stands alone is a prompt.

    Raises:
      UserError: no kind of table that is known, columns of several lengths, or no such split.
    """
    return table.records if isinstance(table, Numbered) else list(enumerate(_records(table, split), 1))


def _records(table: Table, split: str) -> list[Any]:
    if hasattr(table, "to_pylist"):  # pyarrow
        return table.to_pylist()
    if hasattr(table, "to_list") and hasattr(table, "column_names"):  # datasets.Dataset
        return table.to_list()
    if hasattr(table, "to_dict") and hasattr(table, "iloc"):  # pandas
        return [_without_nan(row) for row in table.to_dict("records")]
    if isinstance(table, Mapping):
        if table and all(hasattr(part, "column_names") for part in table.values()):  # datasets.DatasetDict
            return _records(_split(table, split), split)
        return _from_columns(table)
    if isinstance(table, Iterable) and not isinstance(table, (str, bytes)):
        return [{"prompt": row} if isinstance(row, str) else row for row in table]
    raise UserError(
        f"{MEMORY}: a {type(table).__name__} is no table; give a list of dicts, a dict of lists, a pandas DataFrame, "
        "a pyarrow Table, a Hugging Face Dataset, or a name or path"
    )


def _split(parts: Mapping[str, object], split: str) -> Any:
    if split not in parts:
        raise UserError(f"{MEMORY}: has no split {split!r}; choose one of {', '.join(parts)} (split=...)")
    return parts[split]


def _from_columns(columns: Mapping[str, Sequence[object]]) -> list[JSONObject]:
    lengths = {}
    for name, values in columns.items():
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise UserError(
                f"{MEMORY}: column {name!r} is a {type(values).__name__}; a dict holds one list for every column"
            )
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(
            f"{MEMORY}: columns have different lengths ({shown}); give all of them one value a row"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _without_nan(row: JSONObject) -> JSONObject:
    """pandas writes NaN (or NaT) where nothing is recorded, and NumPy scalars where Python has its own."""
    return {
        name: None
        if _is_missing(value)
        else value.item()
        if hasattr(value, "item") and not getattr(value, "shape", ())
        else value
        for name, value in row.items()
    }


def _is_missing(value: object) -> bool:
    """NaN, NaT and pandas.NA, none of which equals itself."""
    if isinstance(value, (str, list, dict, tuple)) or getattr(value, "shape", ()):
        return False
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA compares to NA, which has no truth
        return True
