"""Run directories and metric writers: resume, refusal, exact files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.run.config.load import load
from rlhf.run.directory import Run, plain, read_result
from rlhf.run.metrics import MetricWriter, read_metrics
from rlhf.run.progress import ProgressLine, watched
from rlhf.train.config import SFTConfig
from rlhf.train.optim import OptimizerConfig


def make_config(output_dir, **changes):
    values = dict(
        seed=1,
        output_dir=str(output_dir),
        data={"path": "a.jsonl"},
        model={"name": "m"},
        optimizer={"learning_rate": 1e-4},
        train={"steps": 10},
    )
    return SFTConfig(**values | changes)


def test_fresh_then_resumed_with_every_session_recorded(tmp_path):
    config = make_config(tmp_path / "r")
    with Run.open(tmp_path / "r", config, "sft") as run:
        assert not run.resumed
    with Run.open(tmp_path / "r", config, "sft") as run:
        assert run.resumed
    assert load(tmp_path / "r" / "config.yaml", [], SFTConfig) == config
    environment = json.loads((tmp_path / "r" / "environment.json").read_text())
    assert environment["seed"] == 1 and environment["kind"] == "sft" and len(environment["sessions"]) == 2
    assert environment["sessions"][0]["versions"]["jax"] and environment["sessions"][0]["devices"]


def test_secrets_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sesame-env")
    monkeypatch.setattr(sys, "argv", ["chorus", "train", "judge.api_key=sesame-arg", "seed=1"])
    Run.open(tmp_path / "r", make_config(tmp_path), "sft").close()
    text = (tmp_path / "r" / "environment.json").read_text()
    assert "sesame" not in text and "seed=1" in text


def test_a_moved_run_resumes(tmp_path):
    Run.open(tmp_path / "a", make_config(tmp_path / "a"), "sft").close()
    (tmp_path / "a").rename(tmp_path / "b")
    assert Run.open(tmp_path / "b", make_config(tmp_path / "b"), "sft").resumed


def test_another_configuration_is_refused_naming_the_first_difference(tmp_path):
    Run.open(tmp_path / "r", make_config(tmp_path), "sft").close()
    before = {path: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    other = make_config(tmp_path, optimizer=OptimizerConfig(learning_rate=2e-4, beta1=0.5), completions="all")
    with pytest.raises(
        UserError, match=r"optimizer.learning_rate is 0.0001 there, 0.0002 here.*choose another output_dir"
    ):
        Run.open(tmp_path / "r", other, "sft")
    with pytest.raises(UserError, match="holds a sft run, not dpo"):
        Run.open(tmp_path / "r", make_config(tmp_path), "dpo")
    assert before == {path: path.read_bytes() for path in (tmp_path / "r").iterdir()}


def test_a_run_from_before_a_key_resumes_where_the_key_has_its_default(tmp_path):
    Run.open(tmp_path / "r", make_config(tmp_path), "sft").close()
    path = tmp_path / "r" / "config.yaml"
    whole = path.read_text()
    path.write_text("".join(line for line in whole.splitlines(True) if "completions" not in line))
    assert Run.open(tmp_path / "r", make_config(tmp_path), "sft").resumed
    with pytest.raises(UserError, match='completions is "chosen" there, "all" here'):
        Run.open(tmp_path / "r", make_config(tmp_path, completions="all"), "sft")
    path.write_text(whole + "retired: 3\n")
    with pytest.raises(UserError, match="retired is 3 there, absent here"):
        Run.open(tmp_path / "r", make_config(tmp_path), "sft")


@pytest.mark.parametrize("damage", [b"", b"- 1", b"\xff", b"a: [", b"# chorus sft\n"])
def test_a_damaged_configuration_is_refused(tmp_path, damage):
    Run.open(tmp_path / "r", make_config(tmp_path), "sft").close()
    (tmp_path / "r" / "config.yaml").write_bytes(damage)
    with pytest.raises(UserError, match="config.yaml: damaged"):
        Run.open(tmp_path / "r", make_config(tmp_path), "sft")


def test_directories_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(thesis.tex\) and not a run"):
        Run.open(tmp_path, make_config(tmp_path), "sft")
    with pytest.raises(UserError, match="a file of this name exists"):
        Run.open(tmp_path / "thesis.tex", make_config(tmp_path), "sft")
    with pytest.raises(UserError, match="cannot create it"):
        Run.open(tmp_path / "thesis.tex" / "r", make_config(tmp_path), "sft")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_while_it_was_created_starts_fresh(tmp_path):
    (tmp_path / "run.lock").write_text("process 1")
    (tmp_path / ".config.yaml.abc.tmp").write_text("se")
    assert not Run.open(tmp_path, make_config(tmp_path), "sft").resumed


def test_two_processes_in_one_directory_and_the_lock_of_a_dead_one(tmp_path):
    config = make_config(tmp_path / "r")
    run = Run.open(tmp_path / "r", config, "sft")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        Run.open(tmp_path / "r", config, "sft")
    run.close()
    code = (
        "import sys, time\nfrom rlhf.run.directory import Run\nfrom rlhf.run.config.load import load\n"
        "from rlhf.train.config import SFTConfig\n"
        "Run.open(sys.argv[1], load(sys.argv[1] + '/config.yaml', [], SFTConfig), 'sft')\n"
        "print('open', flush=True)\ntime.sleep(100)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid} on"):
        Run.open(tmp_path / "r", config, "sft")
    process.kill()
    process.communicate()
    assert Run.open(tmp_path / "r", config, "sft").resumed


def test_a_users_mistake_in_a_fresh_run_leaves_nothing_and_progress_stays(tmp_path):
    with (
        pytest.raises(UserError, match="bad row"),
        Run.open(tmp_path / "r", make_config(tmp_path), "sft") as run,
    ):
        with MetricWriter(run.directory):
            raise UserError("bad row")
    assert not (tmp_path / "r").exists()
    with (
        pytest.raises(UserError, match="disk"),
        Run.open(tmp_path / "r", make_config(tmp_path), "sft") as run,
    ):
        with MetricWriter(run.directory) as writer:
            writer.write(1, {"loss": 1.0})
            raise UserError("disk")
    assert (tmp_path / "r" / "config.yaml").exists() and len(read_metrics(tmp_path / "r")) == 1


def test_results_are_plain_json(tmp_path):
    with Run.open(tmp_path / "r", make_config(tmp_path), "sft") as run:
        run.write_result(
            {"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), "d": {1: (np.bool_(True), None)}}
        )
    assert read_result(tmp_path / "r") == {
        "a": 0.5,
        "b": [0, 1],
        "c": None,
        "d": {"1": [True, None]},
    }
    assert plain(np.float64("inf")) is None


def write_steps(directory, start, stop):
    with MetricWriter(directory, start, num_steps=10) as writer:
        for step in range(start + 1, stop + 1):
            writer.write(step, {"train/loss": 1 / step, "kl": np.float32(step)})


def test_a_killed_and_resumed_run_leaves_the_same_metrics(tmp_path, capsys):
    write_steps(tmp_path / "a", 0, 10)
    write_steps(tmp_path / "b", 0, 7)
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "tra')  # torn by the kill
    write_steps(tmp_path / "b", 4, 10)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read_metrics(tmp_path / "b")] == list(range(1, 11))
    assert "train step 10/10: train/loss 0.1  kl 10" in capsys.readouterr().err.splitlines()


def test_tensorboard_holds_the_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write_steps(tmp_path, 0, 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # TFRecord: length (8 bytes), its checksum (4), data, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    assert found[("train/loss", 2)] == 0.5 and found[("kl", 3)] == 3.0 and len(found) == 6


def test_non_finite_metrics_are_null_and_damage_is_named(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan")})
        writer.write(2, {"loss": 1.0})
    assert read_metrics(tmp_path)[0] == {"step": 1, "loss": None}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(UserError, match="metrics.jsonl: line 2"):
        MetricWriter(tmp_path, 2)


def test_progress_without_a_terminal_shows_start_and_end(capsys):
    with ProgressLine("embed", 100, unit="item", every_seconds=60) as progress:
        for done in range(0, 101, 10):
            progress.update(done)
    assert capsys.readouterr().err.splitlines() == ["embed item 0/100", "embed item 100/100"]


def test_only_work_that_takes_a_while_is_watched(capsys, monkeypatch):
    now = iter(np.arange(0.0, 1000.0, 2.0))  # every look at the clock is two seconds after the last
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    assert list(watched(["a", "b"], "embed")) == ["a", "b"]
    assert capsys.readouterr().err == ""
    assert list(watched(range(9), "embed")) == list(range(9))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "embed batch 2/9" and lines[-1] == "embed batch 9/9" and len(lines) > 2
    with ProgressLine("train", 1):
        assert list(watched(range(9), "embed")) == list(range(9))
    assert capsys.readouterr().err == ""
