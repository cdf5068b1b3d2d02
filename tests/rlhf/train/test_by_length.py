"""`train.length_buckets`: the same losses and reference, resumed as any other run, said how much is padding."""

import json
import logging

import numpy as np
import pytest

from rlhf.policy import store as policy_store
from rlhf.run.config.load import made
from rlhf.run.metrics import read_metrics
from rlhf.train import dpo
from rlhf.train.callbacks import Function
from rlhf.train.config import DPOConfig
from rlhf.train.reward import trainer
from rlhf.train.reward.config import RewardTrainConfig
from tests.rlhf import tiny

LENGTHS = (1, 2, 3, 4, 14)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, and 20 pairs of which most are short."""
    folder = tmp_path_factory.mktemp("uneven")
    tiny.write_model(folder / "model", vocab_size=48)
    rows = [
        {
            "prompt": "Which ?",
            "chosen": " ".join(f"item {n}" for _ in range(LENGTHS[n % 5])),
            "rejected": f"item {n + 1} ?",
        }
        for n in range(20)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def values(place, output, **train):
    return {
        "seed": 3,
        "output_dir": str(output),
        "data": {"path": str(place / "pairs.jsonl")},
        "model": {"name": str(place / "model"), "adapter_layers": 1},
        "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},
        "train": {"steps": 5, "batch_rows": 2, "accumulation_steps": 2, "log_every": 1, **train},
    }


def config(place, output, **train):
    return made(values(place, output, **train) | {"loss": {"kind": "dpo"}}, DPOConfig, "test", {})


def reward_config(place, output, **train):
    return made(values(place, output, **train) | {"head": {"num_basis": 0}}, RewardTrainConfig, "test", {})


def weights(output):
    params = policy_store.load_policy(output).params
    return policy_store.flatten(params.lora)


def test_a_step_over_all_rows_is_the_same_step(place, tmp_path):
    """Of one step nothing can be sorted into another: only the widths differ."""
    whole = {"steps": 2, "batch_rows": 10, "checkpoint_every": 10}
    one, other = (
        dpo.run(config(place, tmp_path / name, length_buckets=buckets, **whole))
        for name, buckets in (("plain", 1), ("grouped", 3))
    )
    for name in ("train/loss/total", "train/token_entropy_nats", "train/grad_norm", "train/kl_ref_nats"):
        assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    plain, grouped = weights(tmp_path / "plain"), weights(tmp_path / "grouped")
    assert all(np.abs(plain[name] - grouped[name]).max() < 1e-5 for name in plain)


def test_narrow_steps_see_every_row_and_a_stopped_run_goes_on(place, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dpo.run(config(place, tmp_path / "whole", length_buckets=3))
    assert "train.length_buckets: rows of 8, 16, 40 tokens, one program each" in caplog.text
    lengths = [row["train/completion_tokens"] for row in read_metrics(tmp_path / "whole")]
    rows = [4 + 1, 6 + 1, 8 + 1, 10 + 1, 30 + 1]
    assert max(lengths) > 2 * min(lengths) and np.mean(lengths) < np.mean(rows)

    def stop(step, metrics):
        if step == 3:
            raise KeyboardInterrupt

    broken = config(place, tmp_path / "broken", length_buckets=3, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        dpo.run(broken, callbacks=[Function(stop)])
    dpo.run(broken)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_much_padding_is_spoken_of(place, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dpo.run(config(place, tmp_path / "plain", steps=1))
    assert "% of the tokens computed are padding; 8 would have less" in caplog.text


def test_reward_models_are_trained_on_narrow_rows_too(place, tmp_path):
    one, other = (
        trainer.run(reward_config(place, tmp_path / str(n), length_buckets=n, steps=2, batch_rows=10))
        for n in (1, 3)
    )
    assert one["train/loss/total"] == pytest.approx(other["train/loss/total"], rel=1e-4)
