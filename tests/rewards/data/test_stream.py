"""Rows that are read when they are visited: what is refused, as `rewards.data.sources` refuses it of a whole file."""

import json
import time

import pyarrow
import pyarrow.parquet
import pytest

from rewards.data.stream import Stream
from rewards.errors import UserError

ROW = {"prompt": "Which?", "completion": "this one"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROW | {"number": n}) + "\n" for n in range(3)))
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"split": "test"}, "data.split 'test': a file is one split"),
        ({"columns": {"completion": "complet"}}, "no column 'complet' in its first 3 rows (columns: prompt,"),
        ({"columns": {"prompt": "number", "text": "txt"}}, "no column 'txt'"),
    ],
)
def test_what_would_change_nothing_is_refused(file, given, said):
    with pytest.raises(UserError) as caught:
        Stream(str(file), **given)
    assert said in str(caught.value)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name the files in it, such as .*/\*\.jsonl"):
        Stream(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            b'{"prompt": "Which?", "completion": "a", "completion": "b"}',
            "field 'completion': is given twice; remove one",
        ),
        (b"[" * 100_000, "is not JSON"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
    ],
)
def test_rows_are_read_as_strictly_as_those_of_a_whole_file(file, line, said):
    file.write_bytes(file.read_bytes() + line + b"\n")
    stream = Stream(str(file))
    assert stream.example(2) == ("Which?", {"this one": 1.0})
    with pytest.raises(UserError) as caught:
        stream.example(3)
    assert f"{file}: row 4: " in str(caught.value) and said in str(caught.value)


def test_columns_and_a_byte_order_mark(file):
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"completion", b"answer"))
    stream = Stream(str(file), {"completion": "answer"}, "all")
    assert [stream.example(n) for n in range(3)] == [("Which?", {"this one": 1.0})] * 3


def parquet(folder, rows):
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("place", [0, 40, -2])
def test_rows_of_a_parquet_file_that_were_damaged_in_the_cache_are_written_again(
    place, tmp_path, monkeypatch
):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    path = parquet(tmp_path, [ROW] * 3)
    known = Stream(path).identity
    [kept] = (tmp_path / "cache" / "streams").glob("*.jsonl")
    content = bytearray(kept.read_bytes())
    content[place] ^= 1
    kept.write_bytes(content)
    again = Stream(path)
    assert again.identity == known and again.example(0) == ("Which?", {"this one": 1.0})


@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_bytes_are_no_text(column, tmp_path, monkeypatch):
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    stream = Stream(parquet(tmp_path, [ROW | {column: ROW[column].encode()}]))
    with pytest.raises(UserError, match=f"row 1: field '{column}'"):
        stream.example(0)


@pytest.mark.parametrize("name", ["shown_frist", "outcom", "chosen_feature", "Item ID", "reson"])
def test_a_misspelt_column_is_named_as_of_a_whole_file(name, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "Which?", "chosen": "a", "rejected": "b", name: 1}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"column '{name}' is unknown; rename it to "):
        Stream(str(path))


@pytest.mark.parametrize("change", [lambda text: text + text, lambda text: text[:-1], lambda text: text])
def test_a_file_that_changes_while_it_is_read_is_named(change, file):
    stream = Stream(str(file))
    stream.example(0)
    time.sleep(0.02)  # the grain of times of files
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=r"rows\.jsonl: changed while it was read"):
        stream.example(1)
