"""Where rows come from: files, Hugging Face datasets, TensorFlow Datasets. Each gives numbered raw records.

A record that cannot even be parsed is handed on as a `RowError` in its place, so that the reader can count
it.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewards import jsonl, opening
from rewards.data import memory, stated_choice
from rewards.data.schema import RowError, show
from rewards.errors import UserError
from rewards.files import JSONObject

Source = str | os.PathLike[str] | memory.Table
"""A name or path, or a table in memory."""
Records = Iterable[tuple[int, object]]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".csv", ".tsv")
MOST_WRONG = 10_000  # lines that are no JSON, after which a file is read no further
SAVED = ("state.json", "dataset_dict.json")  # what marks a folder that `datasets` saved


def name_of(source: Source) -> str:
    """How messages call a source: its name or path, or "data" for what is in memory."""
    if isinstance(source, memory.Numbered):
        return source.name
    return str(source) if isinstance(source, (str, os.PathLike)) else memory.MEMORY


def open_source(source: Source, split: str, columns: Mapping[str, str] | None = None) -> Records:
    """Numbered records of a file, `hf:…`, `tfds:…` or a table in memory; see `rewards.data.read.read_preferences`.

    Args:
      columns: our names of columns → the names they have in the source.
    """
    if isinstance(source, (str, os.PathLike)):
        records = _open_named(str(source), split)
    else:
        records = memory.rows_of(source, split)
    renamed = {ours: theirs for ours, theirs in (columns or {}).items() if ours != theirs}
    return _renamed(records, renamed, name_of(source)) if renamed else records


def _renamed(records: Records, columns: Mapping[str, str], source: str) -> Records:
    records = list(records)
    rows = [record for _, record in records if isinstance(record, Mapping)]
    person = columns.get("user_id")
    if person in ("prompt", "chosen", "rejected") and person not in columns:
        raise UserError(f"user_column {person!r}: holds something else; name the column that says who chose")
    for ours, theirs in columns.items():
        if rows and not any(theirs in row for row in rows):
            raise UserError(
                f"{source}: no column {theirs!r} (columns: {', '.join(map(str, rows[0]))}); name the one that holds "
                f"the {ours}"
            )
    names = {theirs: ours for ours, theirs in columns.items()}
    return [
        (number, _with_names(record, names) if isinstance(record, Mapping) else record)
        for number, record in records
    ]


def _with_names(row: Mapping[str, object], names: Mapping[str, str]) -> JSONObject:
    """The row under our names; a column that stands under one of ours already gives way."""
    taken = {names[name] for name in row if name in names}
    return {names.get(name, name): value for name, value in row.items() if name in names or name not in taken}


def _open_named(path: str, split: str) -> Records:
    if path.startswith("hf:"):
        return hugging_face(path.removeprefix("hf:"), split)
    if path.startswith("tfds:"):
        return tensorflow_datasets(path.removeprefix("tfds:"), split)
    if any((Path(path).expanduser() / mark).is_file() for mark in SAVED):
        return hugging_face(path, split)
    if split not in ("train", "all"):
        raise UserError(
            f"split {split!r}: a file is one split; use 'train' (the whole file), not a part of {path}"
        )
    if path in jsonl.STANDARD_INPUT:
        return json_records(path)
    if not path.strip():
        raise UserError(f"data.path {path!r}: empty; name a file, hf:NAME, tfds:NAME or - for standard input")
    file = Path(path).expanduser()
    if path in stated_choice.SETS and not file.exists():
        file = stated_choice.fetch(path)
    if file.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it, {_folder_hint(file)}")
    if not file.exists():
        hub = re.fullmatch(r"[\w-]+/[\w.-]+", path) and not path.endswith(SUFFIXES)
        fix = f"write hf:{path} for the data set of this name on the hub" if hub else "check data.path"
        raise UserError(f"{path}: no such file; {fix}")
    opening.check(file)
    if file.name.endswith(".parquet"):
        return parquet(file)
    if file.suffix in (".csv", ".tsv"):
        return separated(file)
    if file.name.endswith(SUFFIXES) or file.is_fifo():
        return json_records(file)
    raise UserError(
        f"{path}: unknown kind of file; use one of {', '.join(SUFFIXES)}, or hf:NAME, or tfds:NAME"
    )


def _folder_hint(folder: Path) -> str:
    if (folder / "features.json").exists():
        return f"or write tfds:{folder}"
    return f"or write hf:{folder} for a saved Hugging Face dataset"


def json_records(file: Path | str) -> Iterator[tuple[int, object]]:
    """JSON lines numbered by line (blank ones skipped), or the elements of a JSON array in a `.json` file or a
    pipe.
    """
    if ".jsonl" in Path(file).suffixes[-2:]:
        lines = jsonl.raw_lines(file)
    else:
        lines = jsonl.raw_lines(file, opening.MOST_TEXT)  # an array may stand on one line
        before = []
        for line in lines:
            before.append(line)
            if line.strip():
                break
        lines = itertools.chain(before, lines)
        if before and before[-1].lstrip().startswith(b"["):
            yield from enumerate(jsonl.parse_array(file, lines), 1)
            return
    wrong = 0
    for number, value in jsonl.parsed(lines):
        wrong += isinstance(value, jsonl.LineError)
        if wrong > MOST_WRONG:
            raise UserError(f"{file}: row {number}: {value} (so are {wrong - 1:,} lines before it)")
        yield number, RowError(value.field, str(value)) if isinstance(value, jsonl.LineError) else value


def parquet(file: Path) -> list[tuple[int, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(opening.check(file, pipes=False))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: not a readable parquet file ({_first_line(error)}); write it again"
        ) from None
    return list(enumerate(table.to_pylist(), 1))


def separated(file: Path) -> list[tuple[int, object]]:
    """Comma- or tab-separated values under a line of names, numbered from 1. A cell is text, an empty one nothing; a list
    or an object (messages, features, attributes) is written as JSON, and `outcome` is a number.
    """
    csv.field_size_limit(
        2**31 - 1
    )  # of the whole process; the default refuses texts above 131,072 characters
    try:
        with io.TextIOWrapper(opening.binary(file), encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(
                opening.lines(text, file), delimiter="\t" if file.suffix == ".tsv" else ",", strict=True
            )
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error.reason}); convert the file to UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{file}: line {reader.line_num + 1}: not readable ({error}); check the quotes"
        ) from None
    if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
        raise UserError(
            f"{file}: two columns have one name ({', '.join(reader.fieldnames or ())}); rename one"
        )
    return [(number, _cells(row)) for number, row in enumerate(rows, 1)]


def _cells(row: dict[str | None, Any]) -> object:
    if None in row:
        return RowError(
            "row", f"has {len(row[None])} cells more than the first line names; put texts in quotes"
        )
    if any(cell is None for cell in row.values()):
        return RowError("row", "has fewer cells than the first line names; put texts in quotes")
    return {str(name): _cell(str(name), cell) for name, cell in row.items()}


def _cell(name: str, cell: str) -> object:
    if not cell:
        return None
    if name == "outcome" or cell.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return json.loads(cell)
    return cell


def hugging_face(name: str, split: str) -> list[tuple[int, object]]:
    """A folder saved by `datasets` (or holding data files), or ORG/NAME[/CONFIG] on the hub."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"hf:{name}: needs the `datasets` package; install it with pip install 'chorus-rlhf[hub]'"
        ) from None
    folder = Path(name).expanduser()
    if not folder.exists() and (name.startswith((".", "/", "~")) or not name or name.count("/") > 2):
        raise UserError(f"hf:{name}: no such folder; write hf:ORG/NAME[/CONFIG] for a dataset on the hub")
    try:
        if any((folder / mark).is_file() for mark in SAVED):
            return _numbered(_choose_split(f"hf:{name}", datasets.load_from_disk(str(folder)), split))
        place, config = (str(folder), None) if folder.exists() else _hub_name(name)
        if split == "all":
            return _numbered(_choose_split(f"hf:{name}", datasets.load_dataset(place, config), split))
        return _numbered(datasets.load_dataset(place, config, split=split))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # `datasets` and its transport raise a zoo of unrelated types for unreachable or absent
        raise UserError(
            f"hf:{name} split {split!r}: cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
            "check the "
            "name, the split and the network"
        ) from None


def _hub_name(name: str) -> tuple[str, str | None]:
    organisation, _, rest = name.partition("/")
    dataset, _, config = rest.partition("/")
    return (f"{organisation}/{dataset}" if dataset else organisation), (config or None)


def _choose_split(place: str, loaded: Any, split: str) -> Any:
    import datasets

    if isinstance(loaded, datasets.Dataset):
        own = str(loaded.split) if loaded.split is not None else "train"
        if split in ("all", "train", own):
            return loaded
        raise UserError(f"{place}: holds the one split {own!r}, not {split!r}; use 'train' or 'all'")
    if split == "all":
        return datasets.concatenate_datasets([loaded[name] for name in loaded])
    if split in loaded:
        return loaded[split]
    raise UserError(f"{place}: has no split {split!r}; choose one of {', '.join(loaded)} or 'all'")


def _numbered(dataset: Any) -> list[tuple[int, object]]:
    return list(enumerate(dataset.to_list(), 1))


def tensorflow_datasets(name: str, split: str) -> list[tuple[int, object]]:
    """A prepared folder, or the name of a registered data set; read at random access, without TensorFlow.

    Rows come back in an order of their own (by hash of the key), so a `row` field, where there is one,
    restores the order and the numbering of the original file.
    """
    from rewards.data import tfds_builder

    try:
        rows = [_from_tfds(record) for record in tfds_builder.open_records(name, split)]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"tfds:{name}: holds text that cannot be decoded ({error}); prepare the data set again"
        ) from None
    if rows and all(isinstance(row.get("row"), int) for row in rows):
        return sorted(((row.pop("row"), row) for row in rows), key=lambda pair: pair[0])
    return list(enumerate(rows, 1))


def _from_tfds(record: JSONObject) -> JSONObject:
    """NumPy and bytes → plain Python; undo what our own builder did to fit rows into features."""
    row: JSONObject = {name: _plain(value) for name, value in record.items()}
    # TFDS has no null; '' stands for it wherever an empty text cannot be meant.
    for optional in ("timestamp", "frame", "reason", "hint", "item_id", "shown_first", "repeat_of"):
        if row.get(optional) == "":
            row[optional] = None
    if "other_columns" in row:  # JSON text written by tfds_builder, which keeps '' and null apart
        row |= json.loads(row.pop("other_columns"))
    if row.pop("prompt_format", "text") == "chat":
        row["prompt"] = json.loads(row["prompt"])
    return row


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        parts: JSONObject = {name: _plain(part) for name, part in value.items()}
        if parts.keys() == {"role", "content"} and isinstance(parts["role"], list):
            # A sequence of messages comes back as one list per key.
            return [
                {"role": role, "content": text}
                for role, text in zip(parts["role"], parts["content"], strict=True)
            ]
        return parts
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else show(error)
