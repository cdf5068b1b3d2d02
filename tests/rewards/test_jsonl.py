"""JSON lines: one line a row whatever stands in it, torn and foreign files named in one line."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import jsonl
from rewards.errors import UserError

ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n"  # where str.splitlines cuts
TEXT = st.text(st.sampled_from(ENDS + 'ab "\\{}é😀\x1b\x00\ufeff'), max_size=12) | st.text(max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(TEXT, VALUE, max_size=4), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    for name in ("a.jsonl", "a.jsonl.gz"):
        path = tmp_path_factory.mktemp("j") / name
        jsonl.write(path, rows)
        assert jsonl.rows(path) == rows
        raw = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
        assert raw.decode().splitlines() == raw.decode().split("\n")[:-1]  # for readers who cut everywhere
        assert [json.loads(text) for text in raw.splitlines()] == rows


@pytest.mark.parametrize("end", list(ENDS))
def test_a_raw_end_of_line_inside_a_text_of_others_is_text(tmp_path, end):
    rows = [{"text": f"a{end}b"}, {"text": "c"}]
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    assert jsonl.rows(path) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "\xff"}\n', "row 1: is not UTF-8 (byte 7: invalid start byte)"),
        ("{}\n".encode("utf-16"), "row 1: is not UTF-8"),
        (b"{}\n{oops}\n", "row 2: is not JSON"),
        (b"{}\n\n[1]\n", "row 3: is no object with named fields"),
        (b'{"a": 1, "a": 2}\n', "row 1: is given twice"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "row 1: is not JSON (Exceeds the limit"),
        (b"[" * 100_000 + b"\n", "row 1: is not JSON"),
        (gzip.compress(b"{}\n" * 1000, mtime=0)[:-9], "damaged gzip"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        jsonl.rows(tmp_path / "a.jsonl")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        jsonl.rows(tmp_path / "b.jsonl")


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_left_out(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    jsonl.write(path, [{"step": 1}, {"s": "é\u2028"}])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert jsonl.whole_lines(path) == [(1, {"step": 1})]
    path.write_bytes(whole)
    assert len(jsonl.whole_lines(path)) == 2 and jsonl.whole_lines(tmp_path / "no") == []


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError):
        jsonl.write(tmp_path / "a.jsonl", [{"a": float("nan")}])
    assert not (tmp_path / "a.jsonl").exists()
