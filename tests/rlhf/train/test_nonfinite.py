"""A step whose numbers are not finite: it stops the run and can be replayed, or is left out to the bit."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from rlhf.apps import cli
from rlhf.apps.cli import replay
from rlhf.run.metrics import read_metrics
from rlhf.train import dpo_step, loop, sft_step
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.rl import update
from tests.rlhf import tiny
from tests.rlhf.train.rl import setup

REWARD = """
def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("nonfinite")
    tiny.write_model(root / "model")
    rows = [
        {
            "prompt": "Which ?",
            "completion": f"item {i}",
            "chosen": f"item {i}",
            "rejected": f"item {i + 1}",
            "user_id": f"u{i % 4}",
        }
        for i in range(12)
    ]
    kept = {
        "sft": ["completion"],
        "dpo": ["chosen", "rejected"],
        "grpo": [],
        "ppo": [],
        "reward": ["chosen", "rejected"],
    }
    for name, keys in kept.items():
        lines = [json.dumps({key: row[key] for key in ["prompt", *keys]}) for row in rows]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (root / "length.py").write_text(REWARD)
    train = {"steps": 4, "checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 9}
    sampled = {
        "columns": [{"name": "length", "kind": "function", "function": f"{root / 'length.py'}:length"}],
        "rollout": {"prompts_per_step": 2, "completions": 2, "max_new_tokens": 3},
        "kl": {"coef": 0.05},
    }
    own = {
        "sft": {"train": train | {"batch_rows": 2, "row_length": 8}},
        "dpo": {"train": train | {"batch_rows": 2}, "loss": {"kind": "dpo"}},
        "reward": {"train": train | {"batch_rows": 2}},
        "grpo": sampled | {"train": train},
        "ppo": sampled | {"train": train},
    }
    for kind, config in own.items():
        shared = {
            "seed": 3,
            "data": {"path": str(root / f"{kind}.jsonl")},
            "optimizer": {"learning_rate": 1e-2},
            "model": {"name": str(root / "model"), "dtype": "float32"},
            "tune": {"lora_rank": 2},
        }
        (root / f"{kind}.yaml").write_text(yaml.safe_dump(shared | config))
    return root


def command(world, kind, output, *more) -> int:
    words = ["rewards", "train"] if kind == "reward" else ["train", kind]
    return cli.main([*words, str(world / f"{kind}.yaml"), f"output_dir={output}", *more])


# Decayed by 1e3 · lr times themselves every step, parameters leave float32 within a few steps.
TOO_FAR = ("optimizer.learning_rate=1000", "optimizer.weight_decay=1000", "train.steps=20")


@pytest.mark.parametrize("kind", ["dpo", "grpo", "ppo"])
def test_a_run_stops_keeps_its_last_good_checkpoint_and_is_replayed(world, tmp_path, capsys, kind):
    run = tmp_path / "run"
    assert command(world, kind, run, *TOO_FAR) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    record = json.loads((run / "nonfinite.json").read_text())
    step = record["step"]
    assert said.startswith(f"chorus: step {step}: ") and "not finite" in said and "chorus replay" in said
    assert record["checkpoint"] == step - 1 == Checkpointer(run / "checkpoints").steps()[-1]
    assert len(record["rows"]) == (4 if kind in ("grpo", "ppo") else 2) and record["key"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["replay", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == step and sorted(found["not_finite"]) == sorted(record["metrics"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    replay.show(found)
    assert f"step {step}: " in capsys.readouterr().out


def poisoned(monkeypatch, module, *poisoned):
    """Steps of `module` with these numbers (from 1) learn from a `spoilt` batch."""
    real = loop.run_steps

    def run_steps(state, step_of, batch_of, *rest, **more):
        def batch(number):
            found = batch_of(number)
            return spoilt(found) if number + 1 in poisoned else found

        return real(
            state, step_of, loop.Batches(batch_of.rows, lambda number, _: batch(number)), *rest, **more
        )

    monkeypatch.setattr(f"{module}.run_steps", run_steps)


def spoilt(batch):
    """A batch whose second row has an infinite log π_ref, weight or margin."""
    batch = jax.tree.map(jnp.asarray, batch)
    if isinstance(batch, dpo_step.DPOBatch):
        return batch._replace(ref_logprobs=batch.ref_logprobs.at[0, 1].set(np.inf))
    if isinstance(batch, sft_step.SFTBatch):
        return batch._replace(rows=batch.rows._replace(weight=batch.rows.weight.at[0, 1].set(np.nan)))
    return batch._replace(margin=batch.margin.at[0, 1].set(np.inf))


MODULES = {"sft": "rlhf.train.sft", "dpo": "rlhf.train.dpo", "reward": "rlhf.train.reward.trainer"}


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_the_row_that_spoils_a_step_is_found(world, tmp_path, capsys, monkeypatch, kind):
    run = tmp_path / "run"
    poisoned(monkeypatch, MODULES[kind], 3)
    assert command(world, kind, run) == 2
    record = json.loads((run / "nonfinite.json").read_text())
    assert record["step"] == 3 and record["checkpoint"] == 2
    shutil.rmtree(run / "checkpoints" / "00000002")  # from further back the same step is reached
    capsys.readouterr()
    assert cli.main(["replay", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["not_finite"] == record["metrics"] and found["parameters_not_finite"] == []
    (row,) = found["rows"]
    assert row["place"] == 1 and row["row"] == record["rows"][1] and "train/loss/total" in row["terms"]
    assert "item" in row["text"]


def test_a_replay_with_another_configuration_is_refused(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    poisoned(monkeypatch, MODULES["sft"], 3)
    assert command(world, "sft", run) == 2
    config = run / "config.yaml"
    written = config.read_text()
    for key, old, new in (
        ("seed", "seed: 3\n", "seed: 4\n"),
        ("optimizer.learning_rate", "learning_rate: 0.01", "learning_rate: 0.02"),
        ("train.batch_rows", "batch_rows: 2", "batch_rows: 1"),
        ("tune.lora_rank", "lora_rank: 2", "lora_rank: 4"),
        ("completions", "completions: chosen", "completions: all"),
    ):
        assert old in written
        config.write_text(written.replace(old, new))
        capsys.readouterr()
        assert cli.main(["replay", str(run)]) == 2
        assert (
            f"config.yaml: {key}: is another than that of step 3; restore the file" in capsys.readouterr().err
        )
    config.write_text(written.replace("on_nonfinite: stop", "on_nonfinite: skip"))  # as a resume may
    assert cli.main(["replay", str(run)]) == 0


def test_a_step_that_is_skipped_is_counted_and_the_run_goes_on(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    poisoned(monkeypatch, MODULES["sft"], 3)
    assert command(world, "sft", run, "train.on_nonfinite=skip") == 0
    assert "step 3: left out, train/loss/total" in capsys.readouterr().err
    rows = {row["step"]: row for row in read_metrics(run)}
    assert [rows[step]["train/skipped"] for step in (1, 2, 3, 4)] == [0, 0, 1, 0]
    assert "train/loss/total" not in rows[3] and None not in rows[3].values()


def test_a_run_of_which_every_step_was_left_out_has_failed(world, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    poisoned(monkeypatch, MODULES["sft"], 1, 2, 3, 4)
    skipping = ["train.on_nonfinite=skip", "train.max_skips=100"]
    for _ in range(2):  # the same command again does not finish it either
        assert command(world, "sft", run, *skipping) == 2
        assert (
            "step 4: " in (said := capsys.readouterr().err) and "for 4 steps of the run, all of them" in said
        )
        assert not (run / "metrics.json").exists()


def test_too_many_skips_in_a_row_stop_the_run_and_a_stopped_run_goes_on_with_skips(
    world, tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned(patch, MODULES["dpo"], 2, 3)
        skipping = ["train.on_nonfinite=skip", "train.max_skips=1"]
        assert command(world, "dpo", run, *skipping) == 2
        assert "step 3: " in (said := capsys.readouterr().err) and "for 2 steps in a row" in said
        assert command(world, "dpo", run, "train.on_nonfinite=skip") == 0
    skipped = {row["step"]: row["train/skipped"] for row in read_metrics(run)}
    assert skipped == {1: 0, 2: 1, 3: 1, 4: 0}


def same(first, second):
    """Whether two states agree to the bit in every leaf but the counters."""
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(first._replace(key=())),
        jax.tree_util.tree_leaves_with_path(second._replace(key=())),
        strict=True,
    )
    return all(
        np.array_equal(one, other)
        for (path, one), (_, other) in leaves
        if jax.tree_util.keystr(path) not in (".step", ".iteration")
    )


def test_an_iteration_that_is_skipped_changes_no_parameter_moment_or_scale():
    task = setup.make_task(
        prompts=[[1, 5, 6]], people=np.ones(1, np.float32), groups=2, group_size=2, critic={"value_clip": 0.2},
        kl={"controller": "adaptive", "horizon": 10.0},
    )  # fmt: skip
    task = task._replace(program=dataclasses.replace(task.program, skip=True))
    before = jax.tree.map(jnp.copy, task.state)
    drawn = update.draw(*task[:7], program=task.program)
    rewards = jnp.zeros(drawn.coef.shape)

    def after(rewards):
        given = (drawn, rewards, task.frozen, task.settings)
        return update.update(jax.tree.map(jnp.copy, before), *given, program=task.program)

    made, metrics = after(rewards + jnp.arange(len(rewards))[:, None])
    assert metrics["train/skipped"] == 0 and not same(made, before)
    left, metrics = after(rewards.at[1].set(jnp.nan))
    assert metrics["train/skipped"] == 1 and same(left, before)
    assert left.step == made.step and left.iteration == made.iteration == 1
