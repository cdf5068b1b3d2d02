"""`chorus train … --dry-run`: what a device will hold, judged without weights, and nothing left behind."""

import json

import numpy as np
import pytest

from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.apps.defaults import resolved
from rlhf.run.config.load import build
from rlhf.train import dry_run, sft
from rlhf.train.config import SFTConfig
from tests.rlhf import tiny
from tests.rlhf.api.world import table


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    tiny.write_model(folder / "model")
    (folder / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table()))
    return folder


def config(world, **changes) -> SFTConfig:
    values = {
        "seed": 0,
        "output_dir": str(world / "run"),
        "data": {"path": str(world / "prefs.jsonl")},
        "model": {"name": str(world / "model")},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 2, "row_length": 16},
    }
    return build(values | changes, SFTConfig, "test")


def test_parts_are_those_of_the_run_and_nothing_is_written(world, monkeypatch):
    before = sorted(world.rglob("*"))
    (world / "model" / "model.safetensors").rename(world / "weights")  # not read
    try:
        found = dry_run.run(config(world))
    finally:
        (world / "weights").rename(world / "model" / "model.safetensors")
    assert sorted(world.rglob("*")) == before
    step = found["programs"]["step"]
    states = []

    def spied(*args, start=sft.optim.init_state):
        states.append(start(*args))
        return states[-1]

    monkeypatch.setattr(sft.optim, "init_state", spied)
    base = sft.open_base(config(world))
    sft.train(config(world), sft.read_examples(config(world).data.path), base)
    (state,) = states
    size = sum(leaf.nbytes for leaf in sft.jax.tree.leaves(state.params)) / 1e9
    assert step["trained_gb"] == pytest.approx(size) and step["optimiser_gb"] == pytest.approx(
        2 * size, rel=0.01
    )
    parts = sum(step[f"{use}_gb"] for use in ("weights", "trained", "optimiser", "rows", "temporaries"))
    assert step["total_gb"] == pytest.approx(parts, rel=0.1) and found["fits"] and found["step_seconds"] > 0


def test_what_does_not_fit_is_refused_with_what_would_make_it(world):
    with pytest.raises(UserError) as error:
        dry_run.run(config(world), device_gb=1e-5)
    message = str(error.value)
    assert "has 1e-05" in message and "temporaries" in message and "train.batch_rows lower" in message


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_of_a_stream_the_first_rows_are_read(kind, world, monkeypatch):
    """And no row beyond: the one after them is broken."""
    lines = (world / "prefs.jsonl").read_text().splitlines()[:8]
    (world / "stream.jsonl").write_text("".join(f"{line}\n" for line in [*lines, "{" * 40]))
    monkeypatch.setattr(dry_run.streamed, "batch_rows", lambda seed, step, size, count: np.arange(count))
    words = ["data.stream=true", "train.batch_rows=4", "train.steps=2", "train.epochs=null"]
    words += ["loss.kind=dpo"] if kind == "dpo" else []
    options = {"model.name": str(world / "model"), "data.path": str(world / "stream.jsonl")}
    resolved_config = resolved(kind, options | {"output_dir": str(world / "run")}, words)[0]
    found = dry_run.run(resolved_config, device_gb=1.0)
    assert found["fits"] and found["programs"]["step"]["rows_gb"] > 0


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_the_command_prints_it(kind, world, capsys, monkeypatch):
    monkeypatch.chdir(world)
    (world / "own.py").write_text("def short(completions, **_):\n    return [-len(c) for c in completions]\n")
    more = ["--reward", "own.py:short", "rollout.max_new_tokens=4", "rollout.prompts_per_step=1"]
    arguments = ["train", kind, "--model", "model", "--data", "prefs.jsonl", "--dry-run", "--device-gb", "1"]
    assert cli.main([*arguments, *(more if kind == "grpo" else ())]) == 0
    shown = capsys.readouterr().out
    assert "fits  True" in shown and ".total_gb" in shown and "step_seconds" not in shown
    assert not (world / "runs").exists()
