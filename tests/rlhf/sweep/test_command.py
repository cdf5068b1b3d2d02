"""`chorus sweep` as it is run: workers and trials are processes, some of them are killed, the same command resumes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from rlhf.run.metrics import read_metrics
from tests.rlhf.tiny import write_model

pytest.importorskip("optuna")


@pytest.fixture
def config(tmp_path):
    model = write_model(tmp_path / "model")
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": "Which ?", "chosen": f"item {a}", "rejected": f"item {b}", "user_id": f"p{n % 5}"}
        for n, (a, b) in enumerate(rng.integers(0, 40, (30, 2)))
        if a != b
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "seed": 0,
        "output_dir": str(tmp_path / "sweep"),
        "data": {"path": str(tmp_path / "pairs.jsonl")},
        "model": {"name": str(model)},
        "train": {"steps": 6, "batch_rows": 2, "checkpoint_every": 2, "log_every": 1, "row_length": 64},
        "sweep": {
            "command": "train sft",
            "objectives": {"train/loss/total": "minimize"},
            "trials": 2,
            "workers": 2,
            "optimizer.learning_rate": {"log": [1e-4, 1e-2]},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "sweep.yaml"


def children(parent):
    words = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
    return [int(word) for word in words.split()]


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def test_killed_workers_and_a_killed_command_lose_nothing(config, tmp_path):
    command = [sys.executable, "-m", "rlhf", "sweep", str(config), "--json"]
    trials = tmp_path / "sweep" / "trials"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (trials / "0000.log").exists())
    [victim, *_] = children(first.pid)
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: (trials / "0001.log").exists())
    first.terminate()  # as a batch system does
    assert first.wait(240) == 143
    assert "the same command resumes" in first.stderr.read()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["trials"]["complete"] == 2 and len(list(trials.glob("*.yaml"))) == 2
    for number in range(2):
        assert [row["step"] for row in read_metrics(trials / f"{number:04d}")] == [1, 2, 3, 4, 5, 6]
    again = subprocess.run(
        [sys.executable, "-m", "rlhf", "train", "sft", str(tmp_path / "sweep" / "best.yaml")],
        capture_output=True,
    )
    assert again.returncode == 0
    assert (
        read_metrics(tmp_path / "sweep" / "best")[-1]["train/loss/total"]
        == result["best"]["values"]["train/loss/total"]
    )
