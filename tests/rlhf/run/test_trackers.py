"""Trackers: the real packages offline, resumed without doubles; one that fails, is missing or hangs ends nothing."""

import json
import logging
import threading

import pytest

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.run import trackers
from rlhf.run.directory import Run
from rlhf.run.metrics import MetricWriter, read_metrics
from rlhf.run.system import system_metrics
from rlhf.train.config import SFTConfig

SAID = "nothing more goes there"


def write(directory, start, stop, track):
    directory.mkdir(exist_ok=True)
    with MetricWriter(directory, start, track=track) as writer:
        for step in range(start + 1, stop + 1):
            writer.write(step, {"train/loss": 1 / step, "kl": float("nan") if step == 2 else 0.5})


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    for name in (
        "WANDB_MODE",
        "WANDB_API_KEY",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "TRACKIO_SPACE_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_mlflow_holds_every_step_once_after_a_kill_and_a_resume(tmp_path, caplog):
    pytest.importorskip("mlflow", reason="needs mlflow")
    from mlflow.tracking import MlflowClient

    write(tmp_path / "run", 0, 7, ("mlflow",))
    write(tmp_path / "run", 4, 10, ("mlflow",))  # from the checkpoint of step 4
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("chorus")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(row.step, row.value) for row in history] == [(step, 1 / step) for step in range(1, 11)]
    assert [row.step for row in client.get_metric_history(run.info.run_id, "kl")] == [1, *range(3, 11)]
    assert run.info.status == "FINISHED" and SAID not in caplog.text


def test_wandb_writes_offline_without_a_key(tmp_path, caplog):
    pytest.importorskip("wandb", reason="needs wandb")
    write(tmp_path / "run", 0, 3, ("wandb", "tensorboard"))
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in written.read_bytes() and SAID not in caplog.text
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_trackio_keeps_its_own_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", minversion="0.43", reason="needs trackio")
    import sqlite3

    write(tmp_path / "run", 0, 3, ("trackio",))
    with sqlite3.connect(tmp_path / "trackio" / "chorus.db") as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(text)["train/loss"]) for step, text in rows] == [(n, 1 / n) for n in (1, 2, 3)]
    assert SAID not in caplog.text


class Bad:
    """Fails at the second step."""

    def __init__(self, directory, name, mark):
        self.steps = []

    def write(self, step, values):
        self.steps.append(step)
        if step == 2:
            raise ConnectionError("the server\nis away")

    def flush(self):
        pass

    def close(self):
        raise AssertionError("it was dropped before")


class Absent(Bad):
    def __init__(self, directory, name, mark):
        raise OSError("no route")


class Leaving(Bad):
    def __init__(self, directory, name, mark):
        raise SystemExit(0)


class Interrupting(Bad):
    def write(self, step, values):
        raise KeyboardInterrupt("no thread's business")


KINDS = [
    (Bad, "the server is away"),
    (Absent, "no route"),
    (Leaving, "SystemExit: 0"),
    (Interrupting, "KeyboardInterrupt: no thread's business"),
]


@pytest.mark.parametrize("kind, said", KINDS)
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog, kind, said):
    monkeypatch.setitem(trackers._ELSEWHERE, "wandb", (kind, "json"))
    caplog.set_level(logging.WARNING, logger="chorus")
    write(tmp_path / "run", 0, 6, ("wandb",))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert caplog.text.count("track wandb") == 1 and said in caplog.text and SAID in caplog.text


def test_a_tracker_that_hangs_delays_no_step(tmp_path, monkeypatch, caplog):
    never = threading.Event()

    class Hanging(Bad):
        def write(self, step, values):
            never.wait()

    monkeypatch.setitem(trackers._ELSEWHERE, "wandb", (Hanging, "json"))
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.1)
    caplog.set_level(logging.WARNING, logger="chorus")
    write(tmp_path / "run", 0, 3, ("wandb",))
    assert len(read_metrics(tmp_path / "run")) == 3 and "does not end" in caplog.text
    never.set()


def config(tmp_path, **more):
    return SFTConfig(
        seed=0,
        output_dir=str(tmp_path / "run"),
        data={"path": "x.jsonl"},
        model={"name": "m"},
        optimizer={"learning_rate": 1e-3},
        train={"steps": 3},
        **more,
    )


def test_a_missing_package_is_one_line_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers._ELSEWHERE, "wandb", (Bad, "no_such_package"))
    with pytest.raises(UserError, match=r"track wandb: .*chorus-rlhf\[wandb\]"):
        Run.open(tmp_path / "run", config(tmp_path, track=["wandb"]), "sft")
    assert not (tmp_path / "run").exists()


def test_a_run_may_be_resumed_with_other_trackers(tmp_path):
    with Run.open(tmp_path / "run", config(tmp_path), "sft"):
        pass
    with Run.open(tmp_path / "run", config(tmp_path, track=()), "sft") as run:
        assert run.resumed


@pytest.mark.parametrize("given, fix", [("wandbb", "a list"), ("[tensorboard, wandbb]", "'wandb'")])
def test_a_bad_name_is_one_line(tmp_path, capsys, given, fix):
    words = ["train", "sft", f"output_dir={tmp_path / 'run'}", "data.path=x.jsonl", "model.name=m", "seed=0"]
    (tmp_path / "a.yaml").write_text(
        f"track: {given}\noptimizer: {{learning_rate: 1e-3}}\ntrain: {{steps: 3}}\n"
    )
    assert cli.main([*words[:2], str(tmp_path / "a.yaml"), *words[2:]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "track" in line and "wandbb" in line and fix in line


def test_the_machine_is_measured():
    found = system_metrics()
    assert 0.01 < found["perf/host_gb"] < 1000 and found["perf/host_load"] >= 0
