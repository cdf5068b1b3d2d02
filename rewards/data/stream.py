"""Rows of a file that is larger than memory: found once, read when they are visited.

Of a JSONL file (or several: `rows-*.jsonl`) is kept where each line begins, 8 bytes a row. A parquet file is written once as
JSONL into the cache folder, group of rows by group of rows, since its rows cannot be had one by one. Records of array_record
(JSON objects) can: Grain's own reader fetches them.
"""

import codecs
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rewards import files, hashed, jsonl
from rewards.data import columns as known_columns
from rewards.data import read, schema
from rewards.data.schema import RowError
from rewards.errors import UserError
from rewards.files import cache_dir
from rewards.types import Preferences, Prompt

Parsed = TypeVar("Parsed")
PIECE = 1 << 24  # bytes read at a time
SHORT = 32  # bytes; a line below it is looked at to tell whether it is blank
USER = "user_id"
LOOKED_AT = 100  # rows, of which one has to have a column that the configuration names


class Stream:
    """Records by number, 0 … N−1, in the order of the files.

    Attributes:
      source: how messages call it. identity: sha256 over the content.
    """

    def __init__(self, path: str, columns: Mapping[str, str] | None = None, split: str = "train"):
        if split not in ("train", "all"):
            raise UserError(
                f"data.split {split!r}: a file is one split; use 'train' (the whole file), not a part of {path}"
            )
        self.source = path
        self._names = {theirs: ours for ours, theirs in (columns or {}).items()}
        digest = hashlib.sha256()
        self._files = [_opened(file, digest) for file in _shards(path)]
        self.identity = digest.hexdigest()
        self._bounds = np.cumsum([0, *(len(one) for one in self._files)])
        if not len(self):
            raise UserError(f"{path}: holds no rows; give at least one")
        self._check_columns()

    def _check_columns(self) -> None:
        """Every column that is named stands in one of the first rows, and no column of theirs misspells one of a comparison."""
        rows = [
            row for index in range(min(len(self), LOOKED_AT)) if isinstance(row := self._row(index), Mapping)
        ]
        for theirs, ours in self._names.items():
            if rows and not any(theirs in row for row in rows):
                raise UserError(
                    f"{self.source}: no column {theirs!r} in its first {len(rows)} rows (columns: "
                    f"{', '.join(map(str, rows[0]))}); name the one that holds the {ours}"
                )
        names = dict.fromkeys(str(self._names.get(name, name)) for row in rows for name in row)
        if names.keys() & {"chosen", "rejected"}:
            known_columns.check_columns(names, "user_id", self.source, people=False)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def record(self, index: int) -> object:
        """The parsed row under our names of its columns; a `RowError` where it is no JSON."""
        row = self._row(index)
        if not isinstance(row, Mapping) or not self._names:
            return row
        taken = {self._names[name] for name in row if name in self._names}
        return {self._names.get(k, k): v for k, v in row.items() if k in self._names or k not in taken}

    def _row(self, index: int) -> object:
        """The same as it stands in the file."""
        shard = int(np.searchsorted(self._bounds, index, side="right")) - 1
        try:
            return jsonl.parse(self._files[shard][index - int(self._bounds[shard])])
        except jsonl.LineError as error:
            return RowError(error.field, str(error))

    def pair(self, index: int) -> tuple[Prompt, str, str, float]:
        """Prompt, both completions, and 1 where the first was chosen (0.5 for a tie).

        Raises:
          UserError: file, row, field, value and fix.
        """
        row = self._parsed(index, lambda record: schema.parse_row(record, None))
        return row.prompt, row.chosen, row.rejected, row.outcome

    def example(self, index: int) -> tuple[Prompt, dict[str, float]]:
        """Prompt, and its completions with how much each was chosen: 1 of one alone, of a pair as `pair` says.

        Rows as in `rewards.data.examples.read_examples`. Raises as `pair`.
        """
        return self._parsed(index, _example)

    def preferences(self, index: Sequence[int] | np.ndarray) -> Preferences:
        """Rows `index` as one table, without who chose. Raises as `pair`, and where their features differ in width."""
        rows = [self._parsed(int(row), lambda record: schema.parse_row(record, None)) for row in index]
        numbers = [int(row) + 1 for row in index]
        schema.raise_first(self.source, read.width_problems(numbers, rows))
        names = dict.fromkeys(name for row in rows for name in row.optional)
        return read.assembled(self.source, np.array(numbers, np.int32), rows, list(names), USER)

    def people(self) -> Iterator[str]:
        """Who chose, of every row in turn. Raises as `pair`."""
        known: set[object] = set()  # names that are in order

        def person(record: object) -> str:
            value = schema.row_object(record).get(USER)
            if isinstance(value, str) and value in known:
                return value
            known.add(name := schema.identifier(USER, value))
            return name

        for index in range(len(self)):
            yield self._parsed(index, person)

    def _parsed(self, index: int, parse: Callable[[object], Parsed]) -> Parsed:
        try:
            record = self.record(index)
            if isinstance(record, RowError):
                raise record
            return parse(record)
        except RowError as error:
            raise UserError(f"{self.source}: row {index + 1}: {error}") from None


def _example(record: object) -> tuple[Prompt, dict[str, float]]:
    fields = schema.row_object(record)
    if fields.keys() & {"chosen", "rejected", "chosen_features"}:
        row = schema.parse_row(fields, None)
        shares = {row.chosen: float(row.outcome)}
        shares[row.rejected] = shares.get(row.rejected, 0.0) + 1.0 - float(row.outcome)
        return row.prompt, shares
    prompt, texts, _ = schema.parse_completions(fields, texts=True)
    return prompt, dict.fromkeys(texts.values(), 1.0)


def _shards(path: str) -> Sequence[Path]:
    found = sorted(glob.glob(os.path.expanduser(path))) if any(c in path for c in "*?[") else [path]
    places = [Path(one).expanduser() for one in found]
    if not places:
        raise UserError(f"{path}: no file has such a name; check data.path")
    for place in places:
        if place.is_dir():
            raise UserError(f"{place}: is a folder; name the files in it, such as {place}/*.jsonl")
        if not place.is_file():
            raise UserError(f"{place}: no such file; check data.path")
        if place.suffix not in (".jsonl", ".parquet", ".array_record"):
            raise UserError(
                f"{place}: cannot be read row by row (data.stream); give .jsonl (not compressed), .parquet or "
                ".array_record, or set data.stream=false"
            )
    return places


class _Lines:
    """Lines of a file by number, without those that are blank."""

    def __init__(self, file: Path, digest: "hashlib._Hash"):
        self._starts = _starts(file, digest)
        self._handle = os.open(file, os.O_RDONLY)
        self._file, self._state = file, _state(self._handle)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> bytes:
        begin = int(self._starts[number])
        if _state(self._handle) != self._state:
            raise UserError(f"{self._file}: changed while it was read; restore it and run the command again")
        last = number + 1 == len(self._starts)
        end = os.fstat(self._handle).st_size if last else int(self._starts[number + 1])
        text = os.pread(self._handle, end - begin, begin)
        return text.removeprefix(codecs.BOM_UTF8) if number == 0 else text


def _state(handle: int) -> tuple[int, int]:
    """Size and time of the last change of an open file."""
    status = os.fstat(handle)
    return status.st_size, status.st_mtime_ns


class _Records:
    """Records of an array_record file by number."""

    def __init__(self, file: Path, digest: "hashlib._Hash"):
        import grain

        with open(file, "rb") as opened:
            while piece := opened.read(PIECE):
                digest.update(piece)
        try:
            self._source: Any = grain.sources.ArrayRecordDataSource([str(file)])
            self._count = len(self._source)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{file}: not a readable array_record file ({reason}); write it again") from None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        return self._source[number]


def _opened(file: Path, digest: "hashlib._Hash") -> _Lines | _Records:
    return _Records(file, digest) if file.suffix == ".array_record" else _Lines(_lines_of(file), digest)


def _starts(file: Path, digest: "hashlib._Hash") -> np.ndarray:
    """Where each line that is not blank begins, int64[N]."""
    parts, place, before = [np.zeros(1, np.int64)], 0, b""
    with open(file, "rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == 10)
            parts.append(ends.astype(np.int64) + place + 1)
            place += len(piece)
            before = piece
    starts = np.concatenate(parts)
    if before.endswith(b"\n") or not place:
        starts = starts[:-1]
    lengths = np.diff(np.append(starts, place))
    keep = lengths > 0
    with open(file, "rb") as opened:
        for line in np.flatnonzero(
            lengths < SHORT
        ):  # no pair is so short: blank, or a row that is named when it is read
            opened.seek(int(starts[line]))
            keep[line] = bool(opened.read(int(lengths[line])).strip())
    return starts[keep]


def _lines_of(file: Path) -> Path:
    """The file, or the same rows as JSONL in the cache folder."""
    if file.suffix != ".parquet":
        return file
    import pyarrow
    import pyarrow.parquet

    status = file.stat()
    identity = files.sha256_json([str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino])
    place = cache_dir() / "streams" / f"{file.stem}-{identity[:16]}.jsonl"
    if _whole(place):
        return place
    try:
        table = pyarrow.parquet.ParquetFile(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(place) as temporary, open(temporary, "w", encoding="utf-8") as out:
            for rows in table.iter_batches(batch_size=4096):
                out.writelines(
                    json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows.to_pylist()
                )
        hashed.write_record(place.with_suffix(".json"), {"content": files.sha256_file(place)})
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{file}: not a readable parquet file, or no room for its rows ({reason}); write it again"
        ) from None
    return place


def _whole(place: Path) -> bool:
    """Whether rows written before are there to the byte; else they are written again."""
    try:
        said = hashed.read_record(place.with_suffix(".json"))
        return place.is_file() and said.get("content") == files.sha256_file(place)
    except UserError:
        return False


def _plain(value: object) -> object:
    """What JSON has no type for: times and the like as text; bytes as what is no text anywhere."""
    return {"bytes": len(value)} if isinstance(value, bytes) else str(value)
