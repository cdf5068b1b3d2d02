"""Rows that are read when they are visited: what is refused, as `rewards.data.sources` refuses it of a whole file."""

import json

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
