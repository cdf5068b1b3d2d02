"""The command line: quick, lazy, one-line errors, JSON last."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewards.data.prompts import read_prompts
from rewards.errors import UserError
from rlhf.apps import cli

COMMANDS = [
    "quickstart",
    "replay",
    "probe",
    "data check",
    "data fetch",
    "data audit",
    "data plan",
    "models fetch",
    "rewards fit",
    "rewards train",
    "rewards evaluate",
    "rewards score",
    "rewards rails",
    "users ask",
    "users card",
    "users update",
    "users show",
    "users edit",
    "users list",
    "users forget",
    "train sft",
    "train dpo",
    "train ppo",
    "train grpo",
    "generate",
    "evaluate",
    "compare",
    "export",
    "sweep",
    "launch kubernetes",
    "launch local",
    "launch ray",
    "launch requeue",
    "launch skypilot",
    "launch slurm",
    "launch status",
    "launch logs",
    "launch cancel",
    "config describe",
    "config new",
]
HEAVY = ("jax", "transformers", "pydantic", "numpy", "orbax", "sklearn", "rich")


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time\nstart = time.perf_counter()\n"
        "from rlhf.apps.cli import main\nstatus = main(['--help'])\n"
        "print('SECONDS', time.perf_counter() - start)\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])\nsys.exit(status)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert "HEAVY []" in done.stdout
    assert float(re.search(r"SECONDS (\S+)", done.stdout)[1]) < 1
    assert time.perf_counter() - started < 5  # generous: the machine may be busy


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  chorus {command} " in text and "--json" in text


def test_help_lists_exactly_the_commands_that_exist(capsys):
    groups = sorted({command.split()[0] for command in COMMANDS})
    assert cli.main([]) == 0
    assert sorted(re.findall(r"^    (\w+)", capsys.readouterr().out, flags=re.MULTILINE)) == groups
    for group in groups:
        members = {command.split()[1] for command in COMMANDS if command.startswith(f"{group} ")}
        if members:
            assert cli.main([group]) == 0
            assert set(re.findall(r"^    (\w+)", capsys.readouterr().out, flags=re.MULTILINE)) == members


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "'trian' is not known; did you mean 'train'?"),
        (["train", "dop"], "did you mean 'dpo'?"),
        (["data", "fetch", "elektricity"], "did you mean 'electricity'?"),
        (
            ["data", "check", "x", "--jsno"],
            "--jsno: not an argument of chorus data check; did you mean '--json'?",
        ),
        (["data", "check", "x", "--jso"], "did you mean '--json'?"),
        (["data", "check"], "the following arguments are required: FILE"),
        (["data", "check", "a", "b"], "b: not an argument"),
        (["generate", "--model", "m"], "one of the arguments --prompt --input is required"),
        (["generate", "--model", "m", "--policy", "p", "--prompt", "x"], "not allowed with argument"),
        (["quickstart", "--seed", "many"], "argument --seed: 'many' is not a whole number"),
    ],
)
def test_a_mistyped_command_line(argv, expected, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("chorus: ") and captured.err.count("\n") == 1
    assert expected in captured.err


def test_overrides_may_stand_on_both_sides_of_options():
    args = cli.parse(["train", "dpo", "c.yaml", "a=1", "--json", "b=2"])
    assert args.config == "c.yaml" and args.overrides == ["a=1", "b=2"] and args.json


def test_negative_coefficients_are_no_option():
    assert (
        cli.parse(["export", "--policy", "p", "--output", "o", "--coefficients", "-1.5,2"]).coefficients
        == "-1.5,2"
    )


def namespace(run, json=False, show=None):
    return argparse.Namespace(run=run, json=json, show=show)


def test_json_is_last_on_stdout_and_the_rest_goes_to_stderr(monkeypatch, capsys):
    def run(args):
        print("working")
        return {"a": float("nan"), "b": 1}

    monkeypatch.setattr(cli, "parse", lambda argv: namespace(run, json=True))
    assert cli.main([]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": None, "b": 1} and captured.err == "working\n"


def test_commands_that_load_for_long_say_so_first(monkeypatch, capsys):
    """Only as a process of their own; their programs are those of the command line."""
    monkeypatch.setattr(cli, "execute", lambda args: print("said"))
    words = ["generate", "--model", "m", "--prompt", "x"]
    assert cli.main(words, first_words=True) == 0
    assert capsys.readouterr().err == "loading the model …\n"
    assert cli.main(words) == 0 and capsys.readouterr().err == ""
    assert {name.removeprefix("chorus ") for name in cli._FIRST} <= set(COMMANDS)


def test_what_ends_a_command_decides_its_status(monkeypatch, capsys):
    def ending(error):
        def run(args):
            raise error

        monkeypatch.setattr(cli, "parse", lambda argv: namespace(run))
        return cli.main([])

    assert ending(UserError("file: row 3:\n bad")) == 2
    assert capsys.readouterr().err == "chorus: file: row 3: bad\n"
    assert ending(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "chorus: interrupted; the same command resumes where it stopped"
    assert ending(OSError(28, "No space left on device", "out/x")) == 2
    assert capsys.readouterr().err.startswith("chorus: out/x: cannot write (No space left on device)")
    with pytest.raises(ZeroDivisionError):  # our bug: the traceback must be seen
        ending(ZeroDivisionError())


def test_a_closed_pipe_is_quiet():
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf", "config", "describe", "dpo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)


def wait_until_idle(pid: int) -> None:
    """Until the process has stopped using the processor: it has started and waits for its input."""
    stat, seen = Path(f"/proc/{pid}/stat"), []
    for _ in range(120):
        time.sleep(0.5)
        seen.append(sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])))
        if (
            seen[-1] > 1 and len(set(seen[-4:])) == 1 and len(seen) > 3
        ):  # hundredths of a second, the same for 1.5 s
            return


def test_interrupt_of_the_real_process(tmp_path):
    """Ctrl-C while a command waits on its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf", "generate", "--model", "m", "--input", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    wait_until_idle(process.pid)
    process.send_signal(2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b""
    first, _, last = err.decode().strip().splitlines()
    assert first == "loading the model …"
    assert last == "chorus: interrupted; the same command resumes where it stopped"


def test_a_terminated_process_cleans_up_like_an_interrupted_one(tmp_path):
    """SIGTERM (`kill`, a batch system) unwinds, so that temporary files are removed."""
    code = (
        "import time\nfrom rewards.files import atomic_path\nfrom rlhf.apps import cli\n"
        "def wait(args):\n with atomic_path('x') as path:\n  print('ready', flush=True)\n  time.sleep(60)\n"
        "cli.parse = lambda argv: __import__('argparse').Namespace(run=wait, json=False, show=None)\n"
        "raise SystemExit(cli.main([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + 15 and err.startswith(b"\nchorus: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_turned_into_another_error_is_still_an_interrupt(monkeypatch, capsys):
    """A C extension that is interrupted while it is imported raises ImportError."""

    def run(args):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(cli, "parse", lambda argv: namespace(run))
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "\nchorus: interrupted; the same command resumes where it stopped\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_that_cannot_show_a_character_gets_its_escape():
    code = (
        "from rlhf.apps import cli\n"
        "cli.parse = lambda argv: __import__('argparse').Namespace("
        "run=lambda args: {'text': '±'}, json=True, show=None)\nraise SystemExit(cli.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"text": "±"}


def test_prompts_from_files(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text('plain\n\n{"prompt": "json"}\n{"prompt": [{"role": "user", "content": "chat"}]}\n')
    assert read_prompts(str(path)) == ["plain", "json", (("user", "chat"),)]


def test_describe_prints_every_key_and_json_agrees(capsys):
    assert cli.main(["config", "describe", "sft"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["config", "describe", "sft", "--json"]) == 0
    keys = json.loads(capsys.readouterr().out)["keys"]
    assert "optimizer.learning_rate" in {entry["key"] for entry in keys}
    for entry in keys:
        assert f"\n{entry['key']}  (" in "\n" + text
