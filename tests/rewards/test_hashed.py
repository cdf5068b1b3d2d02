"""Records, tensors and caches with a hash: whole, or not used."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rewards import files, hashed, jsonl
from rewards.errors import UserError

BODY = {"name": "Zoë", "numbers": [1, 2.5, -3e-9], "inner": {"2": None, "1": True}, "empty": {}}


def flips(data: bytes, count: int, seed: int = 0):
    """The data with one bit turned, `count` times."""
    rng = np.random.default_rng(seed)
    for place, bit in zip(rng.integers(0, len(data), count), rng.integers(0, 8, count), strict=True):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        yield bytes(damaged)


def test_a_record_comes_back_without_its_hash(tmp_path):
    hashed.write_record(tmp_path / "a.json", BODY | {"pair": (1, 2), "by_number": {3: 4}})
    assert hashed.read_record(tmp_path / "a.json") == BODY | {"pair": [1, 2], "by_number": {"3": 4}}
    assert set(json.loads((tmp_path / "a.json").read_text())) == {*BODY, "pair", "by_number", "sha256"}


def test_no_flipped_bit_of_a_record_is_used(tmp_path):
    path = tmp_path / "a.json"
    hashed.write_record(path, BODY)
    whole = path.read_bytes()
    for damaged in flips(whole, 600):
        path.write_bytes(damaged)
        try:
            assert hashed.read_record(path) == BODY  # white space between tokens, or the case of an escape
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_every_edit_of_a_record_is_refused_by_name(tmp_path):
    path = tmp_path / "a.json"
    hashed.write_record(path, BODY)
    content = json.loads(path.read_text())
    renamed = {"sha257" if key == "sha256" else key: value for key, value in content.items()}
    for changed in (
        content | {"name": "Zoe"},
        content | {"more": 1},
        content | {"sha256": "0" * 64},
        renamed,
        [1],
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"a\.json"):
            hashed.read_record(path, "mend it")


def test_a_file_from_before_is_taken_gets_its_hash_and_this_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("a.json", "b.json"):
        files.write_json(tmp_path / name, BODY)
    before = files.sha256_file(tmp_path / "a.json")
    assert hashed.read_record(tmp_path / "a.json") == BODY == hashed.read_record(tmp_path / "b.json")
    assert caplog.text.count("get one now") == 1
    assert json.loads((tmp_path / "a.json").read_text())["sha256"]
    # What names a file by its content does not notice.
    assert hashed.record_identity(tmp_path / "a.json") == before
    path = tmp_path / "b.json"
    path.write_text(path.read_text().replace("2.5", "3.5"))
    with pytest.raises(UserError, match="differs"):
        hashed.read_record(path)


def test_the_old_name_of_the_hash_is_read(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, BODY | {"record_sha256": files.sha256_json(BODY)})
    assert hashed.read_record(path) == BODY
    files.write_json(path, BODY | {"record_sha256": files.sha256_json({})})
    with pytest.raises(UserError, match="differs"):
        hashed.read_record(path)


def test_no_flipped_bit_of_a_line_is_used():
    row = {"step": 3, "loss": 0.25, "note": "a\u2028b"}
    line = jsonl.line(hashed.with_hash(row))
    assert hashed.checked_row(json.loads(line)) == row == hashed.checked_row(row)  # the latter from before
    for damaged in flips(line.encode(), 300):
        try:
            assert hashed.checked_row(jsonl.parse(damaged)) == row
        except ValueError:
            pass


def test_tensors_are_strict_and_no_flipped_bit_is_used(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((0, 2), np.float32)}
    hashed.save(tmp_path, "t", tensors, {"width": 3})

    def load():
        return hashed.load(tmp_path, "t", lambda r: {"a": (2, r["width"]), "b": (0, 2)}, "make it again")

    found, record = load()
    assert record == {"width": 3}
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
    path = tmp_path / "t.safetensors"
    whole = path.read_bytes()
    for damaged in flips(whole, 200):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"t\.safetensors.*; make it again"):
            load()
    for changed, message in (
        ({"a": tensors["a"]}, "'b' is missing"),
        (tensors | {"c": tensors["a"]}, "'c' is not part"),
        (tensors | {"a": tensors["a"].T.copy()}, r"float32\[3, 2\]"),
        (tensors | {"a": tensors["a"].astype(np.float64)}, "float64"),
    ):
        save_file(changed, path)
        with pytest.raises(UserError, match=message):
            load()
    path.write_bytes(whole)
    hashed.write_record(tmp_path / "t.json", hashed.read_record(tmp_path / "t.json") | {"width": "x"})
    with pytest.raises(UserError):
        load()


def test_a_damaged_cache_is_computed_again(tmp_path):
    values, asked = np.random.default_rng(0).normal(size=(3, 4)), []

    def compute():
        asked.append(1)
        return values

    np.testing.assert_array_equal(hashed.cached(tmp_path, ["key", 1], compute, "x-"), values)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("x-") and len(asked) == 1
    hashed.cached(tmp_path, ["key", 1], compute, "x-")
    assert len(asked) == 1
    whole = path.read_bytes()
    for number, damaged in enumerate([*flips(whole, 300), whole[:-1], b"", whole + b"\0"], 1):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(hashed.cached(tmp_path, ["key", 1], compute, "x-"), values)
        assert len(asked) == 1 + number and path.read_bytes() == whole
    # Another key's file under this key's name, and one from before there were hashes.
    hashed.cached(tmp_path, "other", lambda: values + 1, "y-").sum()
    next(tmp_path.glob("y-*")).replace(path)
    np.testing.assert_array_equal(hashed.cached(tmp_path, ["key", 1], compute, "x-"), values)
    save_file({"values": values + 2}, path)
    np.testing.assert_array_equal(hashed.cached(tmp_path, ["key", 1], compute, "x-"), values)
