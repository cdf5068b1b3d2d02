"""Keys that no choice of their configuration reads are refused, or spoken of, and never taken without a word."""

import logging
from pathlib import Path

import pytest

from rewards.errors import UserError
from rlhf.run.config.describe import KINDS, schema_of
from rlhf.run.config.load import load, to_yaml

CONFIGS = Path(__file__).parents[3] / "configs"
PLAIN = "configs/electricity/dpo_plain.yaml"

# (kind, file, overrides, key that is named)
REFUSED = [
    ("dpo", "electricity/dpo_plain.yaml", ["loss.simpo_gamma=1.0"], "loss.simpo_gamma"),
    ("dpo", "electricity/dpo_plain.yaml", ["loss.label_smoothing=0.1"], "loss.label_smoothing"),
    ("dpo", "electricity/dpo_plain.yaml", ["rewards=/no/where"], "rewards"),
    ("dpo", "electricity/dpo_plain.yaml", ["conditioner.kind=film"], "conditioner.kind"),
    ("dpo", "electricity/dpo_plain.yaml", ["rail.eta=0.5"], "rail.eta"),
    ("dpo", "electricity/dpo.yaml", ["tune.mode=full", "tune.lora_alpha=8"], "tune.lora_alpha"),
    ("dpo", "electricity/dpo.yaml", ["loss.label_smoothing=0.2"], "loss.label_smoothing"),
    ("dpo", "electricity/dpo.yaml", ["users.extremes=0", "users.prior=0.4", "users.extreme_sd=3"], "users.extreme_sd"),
    ("sft", "electricity/sft.yaml", ["tune={mode: full, lora_rank: 4}"], "tune.lora_rank"),
    ("ppo", "electricity/ppo.yaml", ["kl.controller=fixed", "kl.horizon=5"], "kl.horizon"),
    ("ppo", "electricity/ppo.yaml", ["kl.controller=target", "kl.horizon=5"], "kl.horizon"),
    ("ppo", "electricity/ppo.yaml", ["kl.controller=fixed", "kl.target_nats=5"], "kl.target_nats"),
    ("ppo", "electricity/ppo.yaml", ["critic.backbone=separate", "critic.stop_gradient=false"], "critic.stop_gradient"),
    ("ppo", "electricity/ppo.yaml", ["algorithm.scaling=batch", "algorithm.scale_decay=0.5"], "algorithm.scale_decay"),
    ("grpo", "electricity/grpo.yaml", ["algorithm.kind=grpo", "algorithm.scaling=none"], "algorithm.scaling"),
    ("grpo", "electricity/grpo.yaml", ["algorithm.relabel=0", "algorithm.relabel_limit=2"], "algorithm.relabel_limit"),
    ("grpo", "electricity/grpo.yaml", ["train.samples_every=0", "train.sample_rows=2"], "train.sample_rows"),
    ("rewards", "electricity/rewards.yaml", ["encoder.kind=precomputed", "encoder.pool=last"], "encoder.pool"),
    ("rewards", "electricity/rewards.yaml", ["evaluation.models=[]", "evaluation.controls=false"], "evaluation.controls"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "overrides", "key"), REFUSED)
def test_a_key_on_the_command_line_that_is_not_read_is_refused_by_name(kind, name, overrides, key):
    with pytest.raises(UserError, match=rf"{key} \[command line\]: not read with ") as error:
        load(CONFIGS / name, overrides, schema_of(kind))
    assert "\n" not in str(error.value)


def test_a_choice_on_the_command_line_leaves_the_file_as_it_is(caplog):
    """The file serves another choice as well: its keys are spoken of."""
    with caplog.at_level(logging.WARNING, "chorus"):
        config = load(CONFIGS / "electricity/dpo.yaml", ["loss.kind=dpo"], schema_of("dpo"))
    assert config.loss.kind == "dpo"
    assert "note: rewards [dpo.yaml:8] is not read with loss.kind dpo" in caplog.text
    assert "note: conditioner.rank [dpo.yaml:17] is not read" in caplog.text


def test_in_one_file_both_are_spoken_of(tmp_path, caplog):
    path = tmp_path / "a.yaml"
    path.write_text((CONFIGS / "electricity/dpo_plain.yaml").read_text() + "rewards: runs/x\n")
    with caplog.at_level(logging.WARNING, "chorus"):
        load(path, [], schema_of("dpo"))
    assert "note: rewards [a.yaml:27] is not read with loss.kind dpo, one policy for all" in caplog.text


def shipped():
    for path in sorted(CONFIGS.rglob("*.yaml")):
        kind = next(kind for kind in KINDS if path.stem.split("_")[0] == kind)
        if kind != "sweep":  # a section beside another configuration
            yield path, kind


@pytest.mark.parametrize(("path", "kind"), list(shipped()), ids=str)
def test_every_shipped_configuration_loads_also_with_every_key_written_out(path, kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "chorus"):
        config = load(path, [], schema_of(kind))
        (tmp_path / "whole.yaml").write_text(to_yaml(config))
        assert load(tmp_path / "whole.yaml", [], schema_of(kind)) == config
    assert not caplog.records
