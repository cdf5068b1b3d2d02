"""A sweep whose trials are members of a population: refused where they cannot be, otherwise as a sweep of processes ends."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from rewards.errors import UserError
from rlhf.run.config.load import load
from rlhf.run.directory import read_result
from rlhf.run.metrics import read_metrics
from rlhf.sweep import members
from rlhf.sweep.config import read_sweep
from rlhf.sweep.study import Study
from rlhf.train import dpo
from rlhf.train.config import DPOConfig
from tests.rlhf.api.world import table
from tests.rlhf.tiny import write_model

pytest.importorskip("optuna")

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_model(root / "model")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table()))
    return root


def written(world, folder, section=(), **base):
    config = {
        "seed": 0,
        "output_dir": str(folder / "sweep"),
        "data": {"path": str(world / "pairs.jsonl")},
        "model": {"name": str(world / "model")},
        "tune": {"lora_rank": 2},
        "loss": {"kind": "dpo"},
        "train": {"steps": 4, "batch_rows": 2, "log_every": 1, "checkpoint_every": 2},
        **base,
        "sweep": {
            "command": "train dpo",
            "objectives": {"train/loss/total": "minimize"},
            "sampler": "random",
            "trials": 3,
            "population": 2,
            "optimizer.learning_rate": {"log": [1e-4, 1e-2]},
            "seed": {"int": [0, 9]},
            **dict(section),
        },
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config))
    return folder / "sweep.yaml"


WRONG = {
    "none": ({"population": 0}, {}, ["sweep.population", "greater than or equal to 2"]),
    "one": ({"population": 1}, {}, ["sweep.population", "greater than or equal to 2"]),
    "a word": ({"population": "all"}, {}, ["sweep.population", "integer"]),
    "batch rows": (
        {"train.batch_rows": {"choice": [2, 4]}},
        {},
        ["sweep.population [sweep.yaml:", "train.batch_rows", "remove sweep.population"],
    ),
    "rank and schedule": (
        {"tune.lora_rank": {"int": [2, 4]}, "optimizer.schedule": {"choice": ["linear", "cosine"]}},
        {},
        ["optimizer.schedule, tune.lora_rank", "one value each"],
    ),
    "a whole section": (
        {"optimizer": {"choice": [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]}, "optimizer.learning_rate": None},
        {},
        ["not in optimizer;"],
    ),
    "another command": ({"command": "train sft"}, {"loss": None}, ["is for train dpo, train grpo, train ppo, not train sft"]),
    "all weights": ({}, {"tune": {"mode": "full"}}, ["tune.mode is full", "choose lora"]),
    "lengths": ({}, {"train": {"steps": 4, "length_buckets": 2}}, ["train.length_buckets is 2", "choose 1"]),
    "a stream": ({}, {"data": {"path": "x.jsonl", "stream": True}}, ["data.stream is true"]),
    "trackers": ({}, {"track": ["tensorboard", "wandb"]}, ["wandb follows one run a process"]),
    "processes": ({}, {"mesh": {"processes": 2}}, ["mesh asks for several"]),
    "at once alone": ({"population": None, "population_at_once": 2}, {}, ["sweep.population_at_once", "not read without"]),
    "at once 0": ({"population_at_once": 0}, {}, ["sweep.population_at_once", "greater than or equal to 1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_a_population_is_refused_in_a_line(world, tmp_path, case):
    section, base, words = WRONG[case]
    path = written(world, tmp_path, section, **base)
    values = yaml.safe_load(path.read_text())
    values["sweep"] = {k: v for k, v in values["sweep"].items() if v is not None}
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    with pytest.raises(UserError) as refused:
        read_sweep(path)
    text = str(refused.value)
    assert all(word in text for word in words) and "\n" not in text, text


def numbers(folder):
    lines = read_metrics(folder)
    return [
        {k: v for k, v in line.items() if not k.startswith("perf/") and k != "line_sha256"} for line in lines
    ]


def close_to(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left == {name: pytest.approx(value, rel=1e-5, abs=1e-5) for name, value in right.items()}


def test_a_population_ends_as_its_trials_do_alone(world, tmp_path):
    """Three trials, two at a time: the study, the table, the best; a member's own command finds it finished."""
    sweep = read_sweep(written(world, tmp_path))
    members.work(sweep)
    study = Study(sweep)
    assert [one.state.name for one in study.trials()] == ["COMPLETE"] * 3 and not study.left()
    for number, trial in enumerate(study.trials()):
        folder = study.run_directory(number)
        config = load(folder.with_name(f"{folder.name}.yaml"), [], DPOConfig)
        assert dpo.run(config) == read_result(folder), "its own command says what it has said"
        assert trial.values == [pytest.approx(numbers(folder)[-1]["train/loss/total"])]
    alone = load(study.directory / "trials" / "0002.yaml", [f"output_dir={tmp_path / 'alone'}"], DPOConfig)
    dpo.run(alone)
    close_to(numbers(study.run_directory(2)), numbers(tmp_path / "alone"))


def test_a_signal_ends_a_worker_after_a_checkpoint_of_every_member(world, tmp_path):
    path = written(
        world,
        tmp_path,
        {"trials": 2},
        train={"steps": 4000, "batch_rows": 2, "log_every": 50, "checkpoint_every": 100000},
    )
    command = [sys.executable, "-m", "rlhf", "sweep", str(path), "--worker"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = [tmp_path / "sweep" / "trials" / f"{n:04d}" / "metrics.jsonl" for n in range(2)]
    deadline = time.monotonic() + 120
    while not all(one.exists() and one.stat().st_size for one in metrics):
        assert time.monotonic() < deadline and first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 143
    steps = [sorted(int(p.name) for p in (one.parent / "checkpoints").iterdir()) for one in metrics]
    assert steps[0] == steps[1] and len(steps[0]) == 1 and steps[0][0] < 4000
    study = Study(read_sweep(path))
    assert study.unfinished() and not any(study.was_killed(study.begin()) for _ in range(2))


def test_a_killed_population_goes_on_to_the_same_numbers(world, tmp_path):
    """SIGKILL at two random instants, also between the checkpoints of its members."""
    train = {"steps": 40, "batch_rows": 2, "log_every": 1, "checkpoint_every": 3}
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    path = written(world, tmp_path / "killed", {"trials": 2}, train=train)
    command = [sys.executable, "-m", "rlhf", "sweep", str(path), "--worker"]
    study = Study(read_sweep(path))
    rng = random.Random(7)
    for _ in range(2):
        worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        begun = steps_done(study)
        deadline = time.monotonic() + 180
        while steps_done(study) < begun + 4:
            assert time.monotonic() < deadline and worker.poll() is None, worker.stderr.read()
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2))
        worker.kill()
        worker.wait()
    assert study.unfinished(), "killed before its end"
    members.work(read_sweep(path))
    whole = read_sweep(written(world, tmp_path / "whole", {"trials": 2}, train=train))
    members.work(whole)
    for number in range(2):
        folders = [one.run_directory(number) for one in (study, Study(whole))]
        assert [line["step"] for line in numbers(folders[0])] == list(range(1, 41))
        assert numbers(folders[0]) == numbers(folders[1]), "to the bit"
        weights = [load_file(folder / "policy" / "weights.safetensors") for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert not list(folders[0].rglob("*.tmp"))


def steps_done(study):
    """Lines of metrics of all trials."""
    return sum(len(one.read_bytes().splitlines()) for one in study.directory.glob("trials/*/metrics.jsonl"))
