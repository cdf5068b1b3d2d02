"""Read preferences from any source into `rewards.types.Preferences`, checking every row."""

from collections.abc import Iterable, Mapping

import numpy as np

from rewards.data import columns as known_columns
from rewards.data import schema, sources
from rewards.data.schema import Row, RowError
from rewards.data.sources import Source
from rewards.errors import UserError
from rewards.types import Columns, Preferences, Prompt

_FIRST = ("first", "a", "1")  # spellings of choice_context.chosen_shown in circulation
_SECOND = ("second", "b", "2")


def read_preferences(
    path: Source,
    split: str = "train",
    *,
    user_column: str = "user_id",
    columns: Mapping[str, str] | None = None,
    people: bool = True,
) -> Preferences:
    """Read and check a preference set.

    Args:
      path: a table in memory (`rewards.data.memory`); a file (.jsonl, .json, either with .gz, or .parquet);
        `hf:ORG/NAME[/CONFIG]` or `hf:FOLDER`
        (Hugging Face datasets); `tfds:NAME` or `tfds:FOLDER` (TensorFlow Datasets, read without TensorFlow).
      split: for files "train", which is the whole file, or "all"; otherwise a split's name, or "all".
      user_column: the column that says who chose.
      columns: our names of columns → the names they have in the source.
      people: whether the column that says who chose is required; without it every comparison is `NOBODY`'s.
    Returns:
      The comparisons in file order. `choice` numbers a person's choice events in time order, from
      `choice_context.choice_set` or `.order` when recorded, else from `timestamp`, else from the file order.
    Raises:
      UserError: one line with source, row, field, value and fix; it says how many more rows are bad.
    """
    source = sources.name_of(path)
    numbers, records = [], []
    for number, record in sources.open_source(path, split, columns):
        numbers.append(number)
        records.append(record)
    if not records:
        raise UserError(f"{source}: holds no rows; give at least one comparison")
    names = dict.fromkeys(name for record in records if isinstance(record, dict) for name in record)
    nobody = not people and user_column not in names
    rows, problems = _parse(numbers, records, None if nobody else user_column)
    # A misspelt or missing column breaks every row; it is the better message, where there are columns at all.
    if names:
        known_columns.check_columns(names, user_column, source, people=people)
    schema.raise_first(source, problems)
    schema.raise_first(source, width_problems(numbers, rows))
    return assembled(source, np.asarray(numbers, np.int32), rows, list(names), user_column)


def require_people(prefs: Preferences, purpose: str) -> Preferences:
    """`prefs` as they are.

    Raises:
      UserError: they do not say who chose, which `purpose` needs.
    """
    if not prefs.has_people:
        raise UserError(
            f"{prefs.source}: column 'user_id' is missing, which {purpose} needs; add it, or name the column that says "
            "who chose (user_column)"
        )
    return prefs


def _parse(
    numbers: list[int], records: list[object], user_column: str | None
) -> tuple[list[Row], list[tuple[int, RowError]]]:
    rows, problems = [], []
    for number, record in zip(numbers, records, strict=True):
        try:
            rows.append(schema.parse_row(record, user_column))
        except RowError as error:
            problems.append((number, error))
    return rows, problems


def width_problems(numbers: list[int], rows: list[Row]) -> list[tuple[int, RowError]]:
    """Features of one width in every row, or in none."""
    widths = [None if row.chosen_features is None else len(row.chosen_features) for row in rows]
    problems = []
    for number, width in zip(numbers, widths, strict=True):
        if width != widths[0]:
            here = "is missing" if width is None else f"has {width} numbers"
            first = "has none" if widths[0] is None else f"has {widths[0]}"
            fix = "every row needs features of one width, or none"
            problems.append(
                (number, RowError("chosen_features", f"{here}, but row {numbers[0]} {first}; {fix}"))
            )
    return problems


def assembled(
    path: str, numbers: np.ndarray, rows: list[Row], names: list[str], user_column: str
) -> Preferences:
    """Parsed rows as one table.

    Args:
      numbers: of the rows, from 1. names: columns of any row.
    """
    prompts: dict[Prompt, int] = {}
    items: dict[tuple[int, str, bytes | None], int] = {}
    features: list[np.ndarray] = []
    users: dict[str, int] = {}

    def item(prompt_index: int, text: str, vector: np.ndarray | None) -> int:
        # Features are part of what an item is: two embeddings of one text are two items.
        key = (prompt_index, text, None if vector is None else vector.tobytes())
        index = items.setdefault(key, len(items))
        if vector is not None and index == len(features):
            features.append(vector)
        return index

    user_index = np.empty(len(rows), np.int32)
    pairs = np.empty((len(rows), 2), np.int32)
    for n, row in enumerate(rows):
        prompt_index = prompts.setdefault(row.prompt, len(prompts))
        user_index[n] = users.setdefault(row.user_id, len(users))
        pairs[n] = (
            item(prompt_index, row.chosen, row.chosen_features),
            item(prompt_index, row.rejected, row.rejected_features),
        )
    columns = {
        name: [row.optional.get(name) for row in rows]
        for name in names
        if name not in known_columns.OWN and name != user_column
    }
    _add_shown_first(columns)
    return Preferences(
        prompts=tuple(prompts),
        item_prompt=np.array([key[0] for key in items], np.int32),
        item_text=tuple(key[1] for key in items),
        item_features=np.stack(features) if features else None,
        user_ids=tuple(users),
        user_index=user_index,
        chosen=pairs[:, 0].copy(),
        rejected=pairs[:, 1].copy(),
        outcome=np.array([row.outcome for row in rows], np.float32),
        choice=choice_events(user_index, columns, len(users), path),
        row=numbers,
        columns=columns,
        source=path,
    )


def _add_shown_first(columns: Columns) -> None:
    """`choice_context.chosen_shown` ("first"/"second") says the same as `shown_first`; keep one spelling."""
    if "shown_first" in columns or "choice_context" not in columns:
        return
    places = [str((context or {}).get("chosen_shown")).lower() for context in columns["choice_context"]]
    if any(place in _FIRST + _SECOND for place in places):
        columns["shown_first"] = [
            "chosen" if place in _FIRST else "rejected" if place in _SECOND else None for place in places
        ]


def choice_events(user_index: np.ndarray, columns: Columns, num_users: int, path: str) -> np.ndarray:
    """int32[N]: rank of each row's choice event among its person's events, 0 first.

    Rows of one person with the same `choice_set` (or `order`) are one event; without them each row is its
    own. Times order a person's rows only when every row of that person has one; equal times keep the file
    order.
    """
    num_rows = len(user_index)
    rank = np.arange(num_rows, dtype=np.float64)
    event = _recorded_events(columns, path)
    if event is not None:
        rank = event
    elif "timestamp" in columns:
        times = [
            np.nan if value is None else schema.epoch_seconds("timestamp", value)
            for value in columns["timestamp"]
        ]
        seconds = np.array(times, np.float64)
        untimed = np.bincount(user_index, np.isnan(seconds), num_users)[user_index] > 0
        # Within a person all rows are timed or none counts as timed, so the two scales never meet.
        order = np.lexsort((np.arange(num_rows), np.where(untimed, rank, seconds)))
        rank = np.empty(num_rows)
        rank[order] = np.arange(num_rows)
    order = np.lexsort((rank, user_index))
    first_of_user = np.diff(user_index[order], prepend=-1) != 0
    new_event = first_of_user | (np.diff(rank[order], prepend=-np.inf) != 0)
    count = np.cumsum(new_event)
    start = np.maximum.accumulate(np.where(first_of_user, count, 0))
    choice = np.empty(num_rows, np.int32)
    choice[order] = count - start
    return choice


def _recorded_events(columns: Columns, path: str) -> np.ndarray | None:
    contexts: Iterable[object] = columns.get("choice_context", ())
    for name in ("choice_set", "order"):
        values = [(context or {}).get(name) for context in contexts]
        present = [value for value in values if value is not None]
        if not present:
            continue
        wrong = [value for value in present if not schema.is_number(value)]
        if wrong or len(present) != len(values):
            problem = (
                f"is {schema.show(wrong[0])}" if wrong else f"is missing in {len(values) - len(present)} rows"
            )
            raise UserError(
                f"{path}: choice_context.{name} {problem}; number the choices in every row, or in none"
            )
        return np.asarray(values, np.float64)
    return None
