"""Runs that end early: by a signal, or killed between the last files; the same command then leaves what it would have."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from rewards import files
from rlhf.apps import cli
from rlhf.run import directory, signals
from rlhf.train import loop, trained
from tests.rlhf import tiny

STEPS = 5
SLOW_REWARD = """
import time
from pathlib import Path

def slow(prompts, completions, **columns):
    if not Path("fast").exists():
        Path("waiting").touch()
        time.sleep(120)
    return [float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("endings")
    tiny.write_model(root / "model")
    rows = [
        {"prompt": "Which ?", "completion": f"item {i}", "chosen": f"item {i}", "rejected": f"item {i + 1}"}
        for i in range(12)
    ]
    for name, keys in (("sft", ["completion"]), ("dpo", ["chosen", "rejected"])):
        lines = [json.dumps({key: row[key] for key in ["prompt", *keys]}) for row in rows]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (root / "slow.py").write_text(SLOW_REWARD)
    optimizer = {"learning_rate": 1e-2}
    shared = {
        "seed": 3,
        "optimizer": optimizer,
        "model": {"name": str(root / "model"), "dtype": "float32"},
        "tune": {"lora_rank": 2},
    }
    train = {"steps": STEPS, "checkpoint_every": 100, "log_every": 1, "batch_rows": 2}
    own = {
        "sft": {"data": {"path": str(root / "sft.jsonl")}, "train": train},
        "dpo": {"data": {"path": str(root / "dpo.jsonl")}, "train": train, "loss": {"kind": "dpo"}},
        "grpo": {
            "data": {"path": str(root / "sft.jsonl")},
            "train": {key: value for key, value in train.items() if key != "batch_rows"},
            "columns": [{"name": "slow", "kind": "function", "function": f"{root / 'slow.py'}:slow"}],
            "rollout": {"prompts_per_step": 2, "completions": 2, "max_new_tokens": 3},
            "kl": {"coef": 0.05},
        },
    }
    for kind, config in own.items():
        (root / f"{kind}.yaml").write_text(yaml.safe_dump(shared | config))
    return root


def train(world, kind, output) -> int:
    return cli.main(["train", kind, str(world / f"{kind}.yaml"), f"output_dir={output}"])


def what_is_left(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("perf/", "line_sha256")
    numbers = [{key: value for key, value in line.items() if not key.startswith(timed)} for line in lines]
    return numbers, (output / "policy" / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(world):
    (world / "fast").touch()
    found = {}

    def of(kind):
        if kind not in found:
            previous = os.getcwd()
            os.chdir(world)
            try:
                assert train(world, kind, world / f"whole-{kind}") == 0
            finally:
                os.chdir(previous)
            found[kind] = what_is_left(world / f"whole-{kind}")
        return found[kind]

    return of


@pytest.mark.parametrize(
    ("kind", "number", "step", "where"),
    [
        ("sft", signal.SIGINT, 1, "batch"),
        ("sft", signal.SIGTERM, 2, "report"),
        ("sft", signal.SIGHUP, 3, "batch"),
        ("sft", signal.SIGTERM, STEPS, "batch"),
        ("dpo", signal.SIGTERM, 2, "batch"),
        ("grpo", signal.SIGINT, 2, "batch"),
    ],
)
def test_a_signal_in_the_loop(world, undisturbed, tmp_path, monkeypatch, capsys, kind, number, step, where):
    """The step ends, its metrics and a checkpoint are written; resumed, nothing is different."""
    wanted = undisturbed(kind)
    monkeypatch.chdir(world)
    run_steps, report = loop.run_steps, loop._report
    count = []

    def send():
        count.append(1)
        if len(count) == step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        module = {"sft": "rlhf.train.sft", "dpo": "rlhf.train.dpo", "grpo": "rlhf.train.rl.trainer"}[kind]

        def disturbed(state, step, batch_of, length, **rest):
            def batch(number):
                if where == "batch":
                    send()
                return batch_of(number)

            return run_steps(state, step, batch, length, **rest)

        def reported(*arguments):
            if where == "report":
                send()
            return report(*arguments)

        patch.setattr(f"{module}.run_steps", disturbed)
        patch.setattr(loop, "_report", reported)
        assert train(world, kind, tmp_path / "run") == 128 + number
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count("chorus: interrupted; the same command resumes") == 1
    done = step if where == "batch" else step + 1
    assert (tmp_path / "run" / "checkpoints" / f"{done:08d}" / "COMPLETE").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == done
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert train(world, kind, tmp_path / "run") == 0
    assert what_is_left(tmp_path / "run") == wanted


def test_a_signal_while_rewards_are_waited_for(world, undisturbed, tmp_path):
    """A process of its own; the reward function sleeps for two minutes in the first step."""
    wanted = undisturbed("grpo")
    (tmp_path / "waiting").unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rlhf",
            "train",
            "grpo",
            str(world / "grpo.yaml"),
            f"output_dir={tmp_path}/run",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_DEBUG_KEY_REUSE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "waiting").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, err.decode()
    assert b"Traceback" not in err and time.monotonic() - began < 60
    (tmp_path / "fast").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert train(world, "grpo", tmp_path / "run") == 0
    assert what_is_left(tmp_path / "run") == wanted


def test_rewards_that_are_interrupted_late_lose_no_step(world, undisturbed, tmp_path, monkeypatch):
    """The state before the step is still there: it is what the checkpoint holds."""
    wanted = undisturbed("grpo")
    monkeypatch.chdir(world)
    from rlhf.phi import on_host

    together, count = on_host.side_by_side, []

    def interrupted(jobs, limits):
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            assert signals.pending()
            (world / "fast").unlink()
            try:
                return together(jobs, limits)
            finally:
                (world / "fast").touch()
        return together(jobs, limits)

    with monkeypatch.context() as patch:
        patch.setattr(on_host, "side_by_side", interrupted)
        assert train(world, "grpo", tmp_path / "run") == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "checkpoints" / "00000003" / "COMPLETE").is_file()
    assert train(world, "grpo", tmp_path / "run") == 0
    assert what_is_left(tmp_path / "run") == wanted


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize("place", ["weights", "policy", "report", "result"])
def test_killed_between_the_last_files(world, undisturbed, tmp_path, monkeypatch, place):
    wanted = undisturbed("sft")
    module, name = {
        "weights": ("rewards.hashed", "write_tensors"),
        "policy": ("rlhf.train.trained", "close"),
        "report": ("rlhf.report", "write_training_report"),
        "result": ("rlhf.run.directory", "Run.write_result"),
    }[place]
    if place == "policy":
        module, name = "rlhf.train.sft", "close"

    def killed(*arguments, **keywords):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", killed)
        with pytest.raises(Killed):
            train(world, "sft", tmp_path / "run")
    assert not (tmp_path / "run" / directory.RESULT).exists()
    assert train(world, "sft", tmp_path / "run") == 0
    assert what_is_left(tmp_path / "run") == wanted
    assert all((tmp_path / "run" / file).is_file() for file in (directory.REPORT, directory.RESULT))


def test_a_finished_run_gets_the_report_that_it_lacks(world, undisturbed, tmp_path, monkeypatch):
    """Runs of before, when metrics.json was written first."""
    assert train(world, "sft", tmp_path / "run") == 0
    (tmp_path / "run" / directory.REPORT).unlink()
    monkeypatch.setattr(trained, "run_callbacks", None)  # nothing is trained
    assert train(world, "sft", tmp_path / "run") == 0
    assert (tmp_path / "run" / directory.REPORT).is_file()


def test_what_dead_processes_left_goes_at_the_next_start(tmp_path, world, undisturbed):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    output = tmp_path / "run"
    assert train(world, "sft", output) == 0
    dead = [
        output / f".metrics.json.{child.pid}-{files._host()}.abc123.tmp",
        output / "policy" / f".weights.safetensors.{os.getpid()}-{files._host()}.x_y.tmp",
        output / ".report.html.abcd1234.tmp",
    ]
    kept = [
        output / f".metrics.json.{os.getppid()}-{files._host()}.abc.tmp",
        output / f".metrics.json.{child.pid}-{1:08x}.abc.tmp",
        output / "notes.tmp",
    ]
    for path in dead + kept:
        path.write_text("half")
    half = output / f".rewards.{child.pid}-{files._host()}.q.tmp"
    (half / "inner").mkdir(parents=True)
    with files.atomic_path(output / "own") as temporary:
        files.remove_leftovers(output)
        assert temporary.exists()
    for path in dead:
        path.write_text("half")
    assert train(world, "sft", output) == 0
    assert not any(path.exists() for path in [*dead, half]) and all(path.exists() for path in kept)
