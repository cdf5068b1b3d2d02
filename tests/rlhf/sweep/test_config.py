"""A sweep is refused before anything runs, in one line with key, place and fix; a right one makes valid runs."""

import pytest
import yaml

from rewards.errors import UserError
from rlhf.run.config.load import load
from rlhf.sweep.config import read_sweep
from rlhf.train.config import SFTConfig

BASE = {
    "seed": 0,
    "output_dir": "runs/sweep",
    "data": {"path": "pairs.jsonl"},
    "model": {"name": "tiny"},
    "train": {"steps": 90, "row_length": 64},
    "optimizer": {"warmup_steps": 2},
}
SWEEP = {
    "command": "train sft",
    "objectives": {"train/loss/total": "minimize"},
    "trials": 4,
    "optimizer.learning_rate": {"log": [1e-4, 1e-2]},
}


def written(folder, base=None, **changes):
    section = {key: value for key, value in (SWEEP | changes).items() if value != "absent"}
    (folder / "s.yaml").write_text(yaml.safe_dump(BASE | (base or {}) | {"sweep": section}, sort_keys=False))
    return folder / "s.yaml"


WRONG = {
    "misspelt key": ({"optimizer.lerning_rate": {"log": [1, 2]}}, ["optimizer.lerning_rate", "did you mean 'learning_rate'"]),
    "a key in two ways": ({"optimizer": {"learning_rate": {"log": [1, 2]}}}, ["optimizer.learning_rate", "key given twice"]),
    "misspelt setting": ({"trails": 3}, ["sweep.trails [s.yaml:", "did you mean 'trials'"]),
    "log with 0": ({"optimizer.learning_rate": {"log": [0, 1]}}, ["sweep.optimizer.learning_rate", "begin above 0", "[0, 1]"]),
    "empty range": ({"tune.lora_rank": {"int": [8, 8]}}, ["sweep.tune.lora_rank", "empty range"]),
    "turned round": ({"optimizer.learning_rate": {"log": [1e-2, 1e-4]}}, ["empty range"]),
    "words as ends": ({"tune.lora_rank": {"int": ["a", 8]}}, ["whole numbers"]),
    "fractions for whole": ({"tune.lora_rank": {"uniform": [1, 8]}}, ["tune.lora_rank", "integer"]),
    "end out of limits": ({"tune.lora_rank": {"int": [0, 8]}}, ["tune.lora_rank", "greater than or equal to 1"]),
    "unknown kind": ({"optimizer.learning_rate": {"lgo": [1, 2]}}, ["'lgo'", "did you mean 'log'"]),
    "two kinds": ({"optimizer.learning_rate": {"log": [1, 2], "uniform": [1, 2]}}, ["a range is one of"]),
    "a value": ({"optimizer.beta2": 0.9}, ["sweep.optimizer.beta2", "write {log:"]),
    "one choice": ({"tune.mode": {"choice": ["lora"]}}, ["choice needs 2"]),
    "a choice twice": ({"tune.mode": {"choice": ["lora", "lora"]}}, ["twice"]),
    "wrong choice": ({"tune.mode": {"choice": ["lora", "lroa"]}}, ["tune.mode", "lroa"]),
    "step": ({"tune.lora_rank": {"int": [1, 8, 2]}}, ["step"]),
    "not a number": ({"optimizer.learning_rate": {"log": [1e-4, float("inf")]}}, ["finite"]),
    "sampler": ({"sampler": "tpee"}, ["sweep.sampler [s.yaml:", "tpee"]),
    "command": ({"command": "train"}, ["sweep.command", "train sft"]),
    "no command": ({"command": "absent"}, ["sweep.command", "required"]),
    "metric": ({"objectives": {"train/los/total": "minimize"}}, ["sweep.objectives", "did you mean 'train/loss/total'"]),
    "metric of another command": ({"objectives": {"train/kl_ref_nats": "minimize"}}, ["no metric of `chorus train sft`"]),
    "direction": ({"objectives": {"train/loss/total": "down"}}, ["objectives", "'minimize' or 'maximize'"]),
    "no objective": ({"objectives": {}}, ["objectives"]),
    "constraint": ({"constraints": ["train/grad_norm < 3"]}, ["sweep.constraints", "METRIC <= NUMBER"]),
    "metric of a constraint": ({"constraints": ["grad <= 3"]}, ["sweep.constraints", "grad is no metric"]),
    "no budget": ({"trials": "absent"}, ["no budget"]),
    "no space": ({"optimizer.learning_rate": "absent"}, ["no key has values to try"]),
    "output_dir": ({"output_dir": {"choice": ["a", "b"]}}, ["every trial has its own"]),
    "grid of numbers": ({"sampler": "grid"}, ["optimizer.learning_rate", "has no grid"]),
    "cmaes of words": ({"sampler": "cmaes", "tune.mode": {"choice": ["lora", "full"]}}, ["cmaes needs numbers"]),
    "cmaes of one": ({"sampler": "cmaes"}, ["two or more"]),
    "several objectives pruned": (
        {"pruner": "median", "objectives": {"train/loss/total": "minimize", "train/grad_norm": "minimize"}},
        ["sweep.pruner", "one objective"],
    ),
    "pruned by steps of its own": ({"pruner": "median", "train.steps": {"int": [10, 90]}}, ["same train.steps"]),
    "prune_after alone": ({"prune_after": 5}, ["not read with pruner none"]),
    "unread": ({"tune": {"lora_rank": {"int": [4, 8]}}}, ["sweep.tune.lora_rank [s.yaml:", "not read with tune.mode full"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sweep_is_named(tmp_path, name):
    changes, parts = WRONG[name]
    base = {"tune": {"mode": "full"}} if name == "unread" else {}
    with pytest.raises(UserError) as error:
        read_sweep(written(tmp_path, base, **changes))
    assert [part for part in parts if part not in str(error.value)] == [], error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ({"no_such_key": 1}, "no_such_key [s.yaml:"),
        ({"tune": {"lora_rnk": 3}}, "tune.lora_rnk [s.yaml:"),
        ({"seed": -1}, "seed [s.yaml:"),
    ],
)
def test_a_wrong_key_of_the_base_is_named_as_it_stands(tmp_path, base, named):
    with pytest.raises(UserError) as error:
        read_sweep(written(tmp_path, base))
    assert str(error.value).startswith(named)


def test_a_file_without_the_section_is_named(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(UserError, match="no section `sweep`"):
        read_sweep(tmp_path / "s.yaml")


def test_the_run_of_a_trial_is_the_base_with_its_values(tmp_path):
    sweep = read_sweep(
        written(tmp_path), ["train.steps=7", "sweep.trials=9", "sweep.optimizer.beta2={uniform: [0.9, 0.99]}"]
    )
    assert sweep.num_trials == 9 and list(sweep.space) == ["optimizer.learning_rate", "optimizer.beta2"]
    text = sweep.yaml({"optimizer.learning_rate": 3e-3, "optimizer.beta2": 0.95}, tmp_path / "trial")
    (tmp_path / "trial.yaml").write_text(text)
    config = load(tmp_path / "trial.yaml", [], SFTConfig)
    assert (config.optimizer.learning_rate, config.optimizer.beta2, config.train.steps) == (3e-3, 0.95, 7)
    assert config.output_dir == str(tmp_path / "trial")


def test_nested_keys_are_dotted_ones(tmp_path):
    nested = written(
        tmp_path,
        **{"optimizer.learning_rate": "absent", "optimizer": {"learning_rate": {"log": [1e-4, 1e-2]}}},
    )
    assert read_sweep(nested).space.keys() == {"optimizer.learning_rate"}


def test_a_key_that_only_some_choices_read_is_allowed(tmp_path):
    space = {"tune.mode": {"choice": ["full", "lora"]}, "tune.lora_rank": {"int": [4, 8]}}
    assert len(read_sweep(written(tmp_path, **space)).space) == 3


def test_a_grid_ends_by_itself(tmp_path):
    space = {"optimizer.learning_rate": {"choice": [1e-3, 1e-2]}, "tune.lora_rank": {"int": [2, 8, 2]}}
    sweep = read_sweep(written(tmp_path, sampler="grid", trials="absent", **space))
    assert sweep.num_trials == 8
