"""Training, generation and export through the command line, on a tiny random model."""

import json

import numpy as np
import pytest
import yaml

from rlhf.apps import cli
from tests.rlhf.tiny import write_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    model = write_model(root / "model")
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": "Which ?", "chosen": f"item {a}", "rejected": f"item {b}", "user_id": f"p{n % 5}"}
        for n, (a, b) in enumerate(rng.permuted(np.tile(np.arange(40), (30, 1)), axis=1)[:, :2])
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "seed": 0,
        "output_dir": str(root / "sft"),
        "data": {"path": str(root / "pairs.jsonl")},
        "model": {"name": str(model)},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 4, "batch_rows": 2, "checkpoint_every": 2, "log_every": 1},
    }
    sft = config | {"train": config["train"] | {"row_length": 64}}
    (root / "sft.yaml").write_text(yaml.safe_dump(sft))
    config |= {"output_dir": str(root / "dpo"), "loss": {"kind": "dpo"}}
    (root / "dpo.yaml").write_text(yaml.safe_dump(config))
    return root


def result_of(capsys, *argv):
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_training_writes_a_run_and_repeating_it_changes_nothing(world, capsys):
    kind = "dpo"
    first = result_of(capsys, "train", kind, world / f"{kind}.yaml")
    metrics = (world / kind / "metrics.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2, 3, 4]
    weights = (world / kind / "policy" / "weights.safetensors").read_bytes()
    assert result_of(capsys, "train", kind, world / f"{kind}.yaml") == first
    assert (world / kind / "metrics.jsonl").read_bytes() == metrics
    assert (world / kind / "policy" / "weights.safetensors").read_bytes() == weights


def test_a_run_that_fell_back_a_checkpoint_ends_with_the_same_weights(world, capsys):
    result_of(capsys, "train", "sft", world / "sft.yaml")
    weights = (world / "sft" / "policy" / "weights.safetensors").read_bytes()
    (world / "sft" / "checkpoints" / "00000004" / "COMPLETE").unlink()
    (world / "sft" / "metrics.json").unlink()  # else the run is finished and nothing is read again
    assert cli.main(["train", "sft", str(world / "sft.yaml")]) == 0
    assert "damaged: step 4 (COMPLETE is missing); using step 2 instead" in capsys.readouterr().err
    assert (world / "sft" / "policy" / "weights.safetensors").read_bytes() == weights


def test_generation_and_export_agree(world, capsys):
    result_of(capsys, "train", "sft", world / "sft.yaml")
    prompts = ["--prompt", "Which ?", "--prompt", "item 3", "--greedy", "--max-new-tokens", "6"]
    tuned = result_of(capsys, "generate", "--policy", world / "sft", *prompts)["completions"]
    exported = result_of(capsys, "export", "--policy", world / "sft", "--output", world / "out")["path"]
    again = result_of(capsys, "generate", "--model", exported, *prompts)["completions"]
    assert len(tuned) == 2 and all(tuned) and again == tuned
