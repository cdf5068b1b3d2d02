"""Jobs of a real Ray on this machine: run, followed, stopped with a checkpoint, submitted again to the same numbers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.apps import cli
from rlhf.run.metrics import read_metrics
from tests.rlhf.launch.test_launch import training

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "address, part",
    [
        ("here", "no address of a dashboard"),
        ("ftp://host", "no address of a dashboard"),
        ("http://host:99999", "no address of a dashboard"),
        ("http://:8265", "no address of a dashboard"),
        ("http://me:secret@host:8265", "--address http://***@host:8265: a password"),
    ],
)
def test_what_is_no_address_is_said_before_anything_is_kept(address, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["launch", "ray", "--address", address, "--", "data", "plan", "--labels", "100"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert part in said and "secret" not in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a head node of its own; only what it started is ended."""
    pytest.importorskip("ray.job_submission", reason="needs ray[default]")
    dashboard = free_port()
    words = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    words += [f"--port={free_port()}", f"--dashboard-port={dashboard}", "--num-cpus=2", "--num-gpus=0"]
    words += ["--object-store-memory=80000000", f"--temp-dir={tmp_path_factory.mktemp('ray')}"]
    log = tmp_path_factory.mktemp("log") / "log"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(log, "wb") as file:
        head = subprocess.Popen(words, stdout=file, stderr=file, env=env, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        from ray.job_submission import JobSubmissionClient

        for _ in range(80):
            try:
                JobSubmissionClient(address).list_jobs()
                break
            except Exception:
                time.sleep(0.5)
        else:
            pytest.skip(f"Ray does not start here: {log.read_text()[-300:]}")
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def state(capsys, name):
    assert cli.main(["launch", "status", name, "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])["status"]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.5)


def test_a_stopped_job_is_submitted_again_and_ends_in_the_same_numbers(
    cluster, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [*training(tmp_path), "train.steps=400", "train.log_every=20"]
    launched = ["launch", "ray", "--address", cluster, "--name", "sft", "--cpus", "1", "--", *words]
    assert cli.main(launched) == 0
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and read_metrics(tmp_path / "run"))
    assert cli.main(["launch", "cancel", "sft"]) == 0
    wait_for(lambda: state(capsys, "sft") not in ("pending", "running"))
    assert state(capsys, "sft") == "cancelled"
    assert cli.main(["launch", "logs", "sft"]) == 0
    assert "the same command resumes" in capsys.readouterr().out
    assert (
        list((tmp_path / "run" / "checkpoints").iterdir())
        and not (tmp_path / "run" / "metrics.json").exists()
    )
    assert cli.main(["launch", "requeue", "sft"]) == 0
    assert cli.main(["launch", "logs", "sft", "--follow"]) == 0  # until it ends
    assert state(capsys, "sft") == "completed"
    assert cli.main([*words, "output_dir=undisturbed"]) == 0
    stopped, plain = ([(row["step"], row["train/loss/total"]) for row in read_metrics(tmp_path / name)]
                      for name in ("run", "undisturbed"))  # fmt: skip
    assert stopped == plain


def test_no_cluster_is_one_line(capsys, tmp_path, monkeypatch):
    pytest.importorskip("ray.job_submission", reason="needs ray[default]")
    monkeypatch.chdir(tmp_path)
    words = [
        "launch",
        "ray",
        "--address",
        f"http://127.0.0.1:{free_port()}",
        "--",
        "data",
        "plan",
        "--labels",
        "9",
    ]
    assert cli.main(words) == 2
    assert "Ray does not answer" in capsys.readouterr().err and not list((tmp_path / "launches").iterdir())
