"""The record of trials: none lost, none run twice, whoever dies; samplers, pruning, constraints and the front."""

import json
import math
import subprocess
import sys
import textwrap

import pytest

from rewards.errors import UserError
from rlhf.run.directory import RESULT
from rlhf.run.metrics import MetricWriter
from rlhf.sweep import worker
from rlhf.sweep.config import read_sweep
from rlhf.sweep.results import write_results
from rlhf.sweep.study import RECORD, Study
from tests.rlhf.sweep.test_config import written

pytest.importorskip("optuna")


@pytest.fixture
def runs(monkeypatch):
    """Trials whose process is a function in here: status by what `outcome` says, a loss curve as metrics."""
    begun = []

    def loss(config, step):
        return abs(math.log10(config.optimizer.learning_rate) + 3) + 1 / step

    def run(study, claim, words):
        begun.append(claim.number)
        config = study.sweep.run_config(claim.chosen, claim.directory)
        claim.directory.mkdir(exist_ok=True)
        (claim.directory / "run.lock").touch()
        with MetricWriter(claim.directory) as writer:
            for step in range(1, config.train.steps + 1):
                writer.write(
                    step, {"train/loss/total": loss(config, step), "train/grad_norm": config.optimizer.beta2}
                )
                if worker.should_stop(study, claim):
                    return None
        (claim.directory / RESULT).write_text("{}")
        return 0

    monkeypatch.setattr(worker, "_run", run)
    return begun


def sweep_of(tmp_path, overrides=(), **changes):
    return read_sweep(
        written(tmp_path, **changes), [f"output_dir={tmp_path / 'sweep'}", "train.steps=20", *overrides]
    )


def test_every_sampler_finishes_its_trials_and_the_best_runs(tmp_path, runs):
    for sampler in ("tpe", "random", "cmaes", "nsga2", "grid"):
        space = {"optimizer.beta2": {"uniform": [0.9, 0.99]}}
        if sampler == "grid":
            space = {
                "optimizer.learning_rate": {"choice": [1e-4, 1e-3, 1e-2]},
                "optimizer.beta2": {"choice": [0.9, 0.95]},
            }
        folder = tmp_path / sampler
        folder.mkdir()
        sweep = sweep_of(folder, sampler=sampler, trials=6, **space)
        worker.work(sweep)
        result = write_results(sweep, Study(sweep))
        rows = [json.loads(line) for line in (sweep.directory / "trials.jsonl").read_text().splitlines()]
        assert [row["trial"] for row in rows] == list(range(6)) and result["trials"]["complete"] == 6
        distinct = len({json.dumps(row["params"]) for row in rows})
        assert distinct == 6 or sampler == "nsga2", (
            f"{sampler} tries the same twice"
        )  # its children may be their parents
        best = min(rows, key=lambda row: row["values"]["train/loss/total"])
        assert result["best"]["trial"] == best["trial"] and (sweep.directory / "report.html").exists()
        assert (
            f"learning_rate: {best['params']['optimizer.learning_rate']}"
            in (sweep.directory / "best.yaml").read_text()
        )


def test_two_workers_never_choose_the_same_at_the_same_time(tmp_path):
    sweep = sweep_of(tmp_path, sampler="random")
    first, second = Study(sweep).begin(), Study(sweep).begin()
    assert first.number == 0 and second.number == 1 and first.chosen != second.chosen


def test_a_dead_worker_loses_no_trial_and_none_runs_twice(tmp_path):
    sweep = sweep_of(tmp_path, trials=1)
    code = f"""
        import os, signal
        from rlhf.sweep.config import read_sweep
        from rlhf.sweep.study import Study
        sweep = read_sweep({str(tmp_path / "s.yaml")!r}, ["output_dir={tmp_path / "sweep"}", "train.steps=20", "sweep.trials=1"])
        claim = Study(sweep).begin()
        print(claim.number, claim.chosen, flush=True)
        input()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    number, _, chosen = other.stdout.readline().partition(" ")
    study = Study(sweep)
    assert study.begin() is None and study.unfinished(), (
        "another's trial is not taken, and no second one begins"
    )
    other.kill()
    other.wait()
    claim = study.begin()
    assert (claim.number, str(claim.chosen)) == (int(number), chosen.strip())
    assert Study(sweep).begin() is None
    study.complete(claim, [1.0], [])
    claim.lock.release()
    assert study.begin() is None and not study.left() and len(study.trials()) == 1


def test_what_a_finished_run_says_counts_though_its_worker_died(tmp_path, runs):
    sweep = sweep_of(tmp_path, trials=1)
    study = Study(sweep)
    claim = study.begin()
    worker._run(study, claim, [])
    claim.lock.release()
    worker.work(sweep)
    assert runs == [0] and study.best()[0].number == 0


def test_a_torn_record_is_mended(tmp_path, runs):
    sweep = sweep_of(tmp_path)
    worker.work(sweep)
    record = sweep.directory / RECORD
    whole = record.read_bytes()
    record.write_bytes(whole + b'{"op_code": 4, "wor')
    assert Study(sweep).num_finished() == 4
    assert record.read_bytes().startswith(whole) and [
        json.loads(line) for line in record.read_bytes().splitlines()
    ]


def test_a_larger_budget_goes_on_and_another_space_is_refused(tmp_path, runs):
    worker.work(sweep_of(tmp_path, trials=2))
    worker.work(sweep_of(tmp_path, trials=3))
    assert runs == [0, 1, 2]
    with pytest.raises(UserError, match="another configuration .sweep.optimizer.learning_rate.log"):
        Study(sweep_of(tmp_path, **{"optimizer.learning_rate": {"log": [1e-5, 1e-2]}}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="not empty .notes.txt. and no sweep"):
        Study(read_sweep(written(tmp_path), [f"output_dir={tmp_path / 'other'}"]))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruning_saves_steps_and_keeps_the_best(tmp_path, runs, pruner):
    changes = {"sampler": "random", "trials": 16, "optimizer.beta2": {"uniform": [0.9, 0.99]}}
    (tmp_path / "full").mkdir()
    full = sweep_of(tmp_path / "full", ["train.steps=27"], **changes)
    worker.work(full)
    pruned = sweep_of(tmp_path, ["train.steps=27"], pruner=pruner, **changes)
    worker.work(pruned)
    result = write_results(pruned, Study(pruned))
    rows = [json.loads(line) for line in (pruned.directory / "trials.jsonl").read_text().splitlines()]
    assert sum(row["steps"] for row in rows) < 0.75 * 27 * 16 and result["trials"]["pruned"] > 2
    best = write_results(full, Study(full))["best"]["values"]["train/loss/total"]
    assert result["best"]["values"]["train/loss/total"] < best + 0.4


def test_the_best_of_several_objectives_meets_the_constraints(tmp_path, runs):
    changes = {"objectives": {"train/loss/total": "minimize", "train/grad_norm": "minimize"}}
    changes |= {
        "trials": 12,
        "optimizer.beta2": {"uniform": [0.9, 0.99]},
        "constraints": ["train/grad_norm >= 0.93"],
    }
    sweep = sweep_of(tmp_path, sampler="nsga2", **changes)
    worker.work(sweep)
    result = write_results(sweep, Study(sweep))
    rows = [json.loads(line) for line in (sweep.directory / "trials.jsonl").read_text().splitlines()]
    points = {row["trial"]: tuple(row["values"].values()) for row in rows}
    fine = {trial for trial, (_, norm) in points.items() if norm >= 0.93}
    front = {
        one
        for one in fine
        if not any(
            all(a <= b for a, b in zip(points[other], points[one], strict=True))
            and points[other] != points[one]
            for other in fine
        )  # fmt: skip
    }
    assert set(result["front"]) == front and result["best"]["trial"] in front
    assert {row["trial"] for row in rows if row["feasible"]} == fine


def test_a_trial_that_says_what_is_wrong_fails_and_one_that_dies_is_taken_up_again(tmp_path, monkeypatch):
    sweep, ends = sweep_of(tmp_path, trials=4), iter([2, -9, 1, -9, 2, 2])

    def run(study, claim, words):
        claim.beside(".log").write_text("something\nchorus: step 3: train/loss/total not finite; lower it\n")
        return next(ends)

    monkeypatch.setattr(worker, "_run", run)
    with pytest.raises(UserError, match="first 3 trials all failed, the last with: step 3"):
        worker.work(sweep)
    problems = [one.user_attrs["problem"] for one in Study(sweep).trials()]
    assert problems[0].startswith("step 3:") and problems[1].startswith("killed by signal 9 3 times")


def test_a_metric_that_no_run_has_stops_the_sweep(tmp_path, runs):
    sweep = sweep_of(tmp_path, objectives={"perf/step_seconds": "minimize"})
    with pytest.raises(
        UserError, match="no metric perf/step_seconds; it has train/grad_norm, train/loss/total"
    ):
        worker.work(sweep)
