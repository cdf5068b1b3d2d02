"""What terminals get: no escape of data, completions and names, no password of an address."""

import contextlib
import io
import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import UserError
from rewards.shown import Shown, printable, speak, without_credentials
from rlhf.apps import cli
from rlhf.report.console import console_table

HOSTILE = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\rb",
    "a\x08b",
    "\u202egnp.exe",
    "\u2066x",
    "\x7f",
    "\x00",
    "\x85",
    "\u2028",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_terminal_obeys(text):
    shown = printable(text)
    assert all(letter.isprintable() for letter in shown) and "\\" in shown


@given(st.text())
def test_lines_and_letters_stay(text):
    shown = printable(text)
    assert shown.count("\n") == text.count("\n") and printable(shown) == shown
    kept = "".join(letter for letter in text if letter.isprintable() and letter != "\\")
    assert printable(kept) == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:PASS@host/v1", "https://***@host/v1"),
        ("got http://token@h:8/x and ftp://a:b@c", "got http://***@h:8/x and ftp://***@c"),
        ('["https://u:p%40q@h"]', '["https://***@h"]'),
        ("https://host/a@b", "https://host/a@b"),
        ("ada@home.org", "ada@home.org"),
        ("https://u:p@ss@host", "https://***@host"),
        ("https:/u:PASS@host/v1: no such folder", "https:/***@host/v1: no such folder"),
        ("s3://key:SECRET@bucket", "s3://***@bucket"),
        ("postgresql+psycopg2://u:PASS@h/db", "postgresql+psycopg2://***@h/db"),
        ("C:\\x@y and a/b@c:/d", "C:\\x@y and a/b@c:/d"),
    ],
)
def test_credentials_of_addresses(text, expected):
    assert without_credentials(text) == expected


def run_with(monkeypatch, run, show=None, json_wanted=False):
    import argparse

    args = argparse.Namespace(run=lambda _: run(), show=show, json=json_wanted)
    monkeypatch.setattr(cli, "parse", lambda argv: args)
    return cli.main([])


@pytest.mark.parametrize("text", HOSTILE)
def test_every_door_of_a_command(monkeypatch, capsys, text):
    def run():
        print(f"asking {text}")
        logging.getLogger("chorus").warning(f"row {text} of https://u:secret@h/")
        console_table(text, [text], [[text]])
        return {"text": text}

    assert run_with(monkeypatch, run, show=lambda result: print(result["text"])) == 0
    out, err = capsys.readouterr()
    assert all(letter.isprintable() or letter == "\n" for letter in out + err), ascii(out + err)
    assert out.count(printable(text)) >= 2 and "secret" not in err
    assert run_with(monkeypatch, run, json_wanted=True) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"text": text} and all(c.isprintable() or c == "\n" for c in out + err)

    def fail():
        raise UserError(f"name {text}: at https://u:secret@h/ wrong")

    assert run_with(monkeypatch, fail) == 2
    err = capsys.readouterr().err
    assert err.startswith("chorus: name") and "secret" not in err and err.count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in err)


def test_a_wrapped_stream_is_otherwise_itself():
    stream = io.StringIO()
    with contextlib.redirect_stdout(Shown(stream)):
        print("é\x1b", "x\ty")
    assert stream.getvalue() == "é\\x1b x\ty\n" and not Shown(stream).isatty()


def test_speaking_twice_says_things_once(capsys):
    speak()
    speak()
    logging.getLogger("chorus").info("once 100%")
    assert capsys.readouterr().err == "once 100%\n"


def test_what_is_said_is_said_once_whatever_libraries_set_up():
    code = (
        "import logging, absl.logging\n"
        "from rewards.shown import speak\n"
        "speak(); speak()\n"
        "absl.logging.vlog(1, 'sets the root logger up')\n"
        "logging.getLogger('chorus').info('ours \\x1b[31m')\n"
        "logging.getLogger('other').warning('theirs \\x1b[31m')\n"
        "logging.getLogger('other').info('not this')\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == ["ours \\x1b[31m", "theirs \\x1b[31m"]
