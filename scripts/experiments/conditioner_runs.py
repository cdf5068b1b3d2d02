"""Every kind of conditioner in SmolLM2-135M: `scripts.experiments.conditioners electricity` and `style`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.evaluation import policy as evaluate_job
from rlhf.evaluation.config import EvaluateConfig
from rlhf.models.adapters import AdapterSpec
from rlhf.models.conditioner_kinds import KINDS, Cost
from rlhf.policy import store as policy_store
from rlhf.run.config.load import load
from rlhf.run.metrics import read_metrics
from rlhf.train import dpo
from rlhf.train.config import DPOConfig
from rlhf.train.rl import trainer as rl
from rlhf.train.rl.config import GRPOConfig

# Coefficients as text are read in every layer, so text cannot do with adapters in the top layers alone.
TEXT = ("conditioner.kind=text", "conditioner.rank=4", "model.adapter_layers=null", "model.remat=true")
# name: overrides of the configuration
RUNS: dict[str, tuple[str, ...]] = {
    "low_rank, r = 8": (),
    "film": ("conditioner.kind=film", "conditioner.rank=4"),
    "prefix, 8 slots": ("conditioner.kind=prefix", "conditioner.rank=4"),
    "logit_heads, r = 8": ("conditioner.kind=logit_heads",),
    "text": TEXT,
}
ONE_AXIS = ("users.posterior=0", "users.prior=0", "users.extremes=0.75", "users.generic=0.25")
ELECTRICITY = RUNS | {"logit_heads, one axis at a time": (*RUNS["logit_heads, r = 8"], *ONE_AXIS)}
FIGURES = (
    "kl_to_optimum",
    "kl_to_optimum_worst_decile",
    "own_beats_aggregate",
    "diagonal_dominance",
    "kl_of_reference_to_optimum",
    "valid_mass",
)
STYLE = (  # few iterations, so each is learned from in many steps
    "rollout.prompts_per_step=4",
    "kl.controller=fixed",
    "algorithm.epochs=2",
    "algorithm.minibatches=4",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup_steps=4",
)
WINDOW = 4  # last iterations that are averaged


def cost_of(spec: AdapterSpec, config: Any, num_layers: int) -> Cost:
    return KINDS[spec.kind].cost(spec, config, num_layers) if spec.num_basis else Cost(0, 0, 0)


def _chosen(runs: dict[str, tuple[str, ...]], only: list[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, name of its folder and overrides of every run that is wanted."""
    for name, overrides in runs.items():
        if not only or any(name.startswith(kind) for kind in only):
            yield name, "".join(letter if letter.isalnum() else "_" for letter in name), overrides


def _cost(run: Path) -> Cost:
    policy = policy_store.load_policy(run)
    assert policy.spec is not None
    return cost_of(policy.spec, policy.base.config, policy.base.stages[-1])


def run_electricity(sft: str, rewards: str, runs: Path, num_steps: int, only: list[str]) -> dict[str, Any]:
    """Train and evaluate every kind (or `only` those of that kind)."""
    out = {}
    for name, slug, overrides in _chosen(ELECTRICITY, only):
        shared = [f"rewards={rewards}", f"model.name={sft}"]
        trained = [*shared, f"output_dir={runs / slug}", f"train.steps={num_steps}", *overrides]
        dpo.run(load("configs/electricity/dpo.yaml", trained, DPOConfig))
        judged = [*shared, f"policy={runs / slug}", f"output_dir={runs / slug}-evaluation"]
        judged += ["sampling.num_samples=1", "sampling.max_new_tokens=40"]
        result = evaluate_job.run(load("configs/electricity/evaluate.yaml", judged, EvaluateConfig))
        cost = _cost(runs / slug)
        out[name] = {
            "parameters": cost.parameters,
            "flops_per_token": cost.per_token,
            "seconds_per_step": min(seconds_of(runs / slug)),
            **{key: result["enumerated"][key] for key in FIGURES},
        }
        print(name, json.dumps(out[name]), flush=True)
    return {"steps": num_steps, "arms": out}


def run_style(runs: Path, num_steps: int, only: list[str]) -> dict[str, Any]:
    """Train every kind (or `only` those of that kind) on open-ended prompts."""
    out: dict[str, Any] = {"steps": num_steps, "window": WINDOW, "arms": {}}
    for name, slug, overrides in _chosen(RUNS, only):
        words = [f"output_dir={runs / slug}", f"train.steps={num_steps}", *STYLE, *overrides]
        config = load("configs/style/grpo.yaml", words, GRPOConfig)
        rl.run(config)
        rows = [row for row in read_metrics(runs / slug) if "train/reward" in row]
        out |= {"rows": config.rows, "beta": config.kl.coef}
        out["arms"][name] = {
            "parameters": _cost(runs / slug).parameters,
            "seconds": min(seconds_of(runs / slug)),
            "reward": [round(row["train/reward"] or 0.0, 4) for row in rows],
            "kl": [round(row["train/kl_ref_nats"] or 0.0, 4) for row in rows],
        }
        print(name, json.dumps(out["arms"][name]), flush=True)
    return out


def seconds_of(run: Path) -> list[float]:
    return [row["perf/step_seconds"] or 0.0 for row in read_metrics(run) if "perf/step_seconds" in row]
