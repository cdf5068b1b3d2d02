"""What is opened for reading: files, and pipes where they will do; nothing that has no end or never answers."""

import gzip
import os
import socket
import threading
from pathlib import Path

import pytest

from rewards import files, jsonl, opening
from rewards.data import prompts
from rewards.data.prompts import read_prompts
from rewards.data.sources import open_source
from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.run.config.load import read as read_config

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(opening, "_WRITER_SECONDS", 0.1)


def odd(kind: str, folder: Path, name: str) -> Path:
    """Something under a name that is no file."""
    path = folder / name
    match kind:
        case "zeros":
            path.symlink_to("/dev/zero")
        case "random":
            path.symlink_to("/dev/urandom")
        case "null":
            path.symlink_to("/dev/null")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
        case "dangling":
            path.symlink_to(folder / "nothing")
    return path


READERS = {
    "rows": ("a.jsonl", lambda path: list(open_source(str(path), "train"))),
    "array": ("a.json", lambda path: list(open_source(str(path), "train"))),
    "cells": ("a.csv", lambda path: list(open_source(str(path), "train"))),
    "parquet": ("a.parquet", lambda path: list(open_source(str(path), "train"))),
    "prompts": ("a.txt", lambda path: read_prompts(str(path))),
    "objects": ("a.jsonl", jsonl.rows),
    "JSON": ("a.json", files.read_json),
    "configuration": ("a.yaml", read_config),
}
KINDS = ("zeros", "random", "null", "folder", "pipe", "loop", "socket", "dangling")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_what_is_no_file(reader, kind, tmp_path):
    name, read = READERS[reader]
    path = odd(kind, tmp_path, name)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)


COMMANDS = {
    "data check": lambda path: ["data", "check", path],
    "train": lambda path: ["train", "grpo", path],
    "sweep": lambda path: ["sweep", path],
    "evaluate": lambda path: ["evaluate", path],
    "config without a file": lambda path: ["rewards", "fit", "--model", "m", "--data", path],
    "generate": lambda path: ["generate", "--model", path, "--prompt", "x"],
    "score": lambda path: ["rewards", "score", "--rewards", path, "--input", "x", "--output", "y.jsonl"],
}


@pytest.mark.parametrize("kind", ("random", "pipe", "socket", "loop"))
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_so_in_one_line(command, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = odd(kind, tmp_path, "given.jsonl")
    assert cli.main(COMMANDS[command](str(path))) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("chorus: ") and str(path) in said[-1]
    assert os.listdir(tmp_path) == ["given.jsonl"]


@pytest.mark.parametrize(
    "device, ends", [("/dev/zero", "device"), ("/dev/urandom", "device"), ("/dev/null", "no rows")]
)
def test_standard_input_that_is_a_device(device, ends, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "dup", lambda _: os.open(device, os.O_RDONLY))
    assert cli.main(["data", "check", "-"]) == 2
    assert ends in capsys.readouterr().err


def test_a_pipe_is_read_as_soon_as_somebody_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_WRITER_SECONDS", 10.0)
    path = odd("pipe", tmp_path, "p")
    writer = threading.Timer(0.1, path.write_bytes, [b"one\ntwo\n"])
    writer.start()
    assert read_prompts(str(path)) == ["one", "two"]
    writer.join()


def sparse(path: Path, size: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_lines_and_texts_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(opening.lines, "__defaults__", (1000,))
    monkeypatch.setattr(jsonl.raw_lines, "__defaults__", (1000,))
    monkeypatch.setattr(opening, "MOST_TEXT", 2000)
    for name in ("a.jsonl", "a.csv", "a.json"):
        with pytest.raises(UserError, match=r"line 1: longer than [12],000 bytes"):
            list(open_source(str(sparse(tmp_path / name, 10_000)), "train"))
    with pytest.raises(UserError, match="line 2: longer"):
        read_prompts(str(jsonl_of(tmp_path / "p.txt", b"short\n" + b"x" * 1001)))
    packed = tmp_path / "bomb.jsonl"
    packed.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(UserError, match="line 1: longer"):
        list(open_source(str(packed), "train"))
    with pytest.raises(UserError, match="an array of more than 2,000 bytes"):
        list(open_source(str(jsonl_of(tmp_path / "b.json", b"[\n" + b"1,\n" * 1000 + b"1]")), "train"))


def jsonl_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_line_of_the_greatest_length_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl.raw_lines, "__defaults__", (1000,))
    path = jsonl_of(tmp_path / "p.txt", b"x" * 999 + b"\n" + b"y" * 1000)
    assert [len(prompt) for prompt in read_prompts(str(path))] == [999, 1000]


@pytest.mark.parametrize("size", [opening.MOST_TEXT + 1, 2**40])
def test_texts_larger_than_any(size, tmp_path, monkeypatch):
    monkeypatch.setattr(opening.text, "__kwdefaults__", {"most": 10_000, "pipes": False, "what": "file"})
    with pytest.raises(UserError, match=r"more than 10,000 bytes"):
        files.read_json(sparse(tmp_path / "config.json", size))
    with pytest.raises(UserError, match=r"more than 4,000,000 bytes, which no configuration file has"):
        read_config(sparse(tmp_path / "a.yaml", size))


def test_a_stream_that_is_no_json_is_not_read_to_its_end(monkeypatch):
    endless = iter(lambda: b"y\n", None)
    monkeypatch.setattr(jsonl, "raw_lines", lambda *_: endless)
    with pytest.raises(UserError, match=r"-: row 10001: .* \(so are 10,000 lines before it\)"):
        list(open_source("-", "train"))
    monkeypatch.setattr(prompts, "MOST_LINES", 1000)
    with pytest.raises(UserError, match="more than 1,000 lines"):
        read_prompts("-")
