"""`chorus train sft`: read, pack, train, store."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards.data.read import read_preferences
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.policy.batches import SFTRows, batch_rows, microbatches, sft_rows
from rlhf.policy.logprobs import PolicyParams, cached_hidden, init_adapters
from rlhf.policy.packing import PackedRows
from rlhf.run.directory import RESULT, Run, read_result
from rlhf.run.metrics import read_metrics
from rlhf.run.record import traced
from rlhf.train import loop as train
from rlhf.train import optim
from rlhf.train import sft_step as sft


def run(config: Any) -> dict[str, Any]:
    """Train and write the run directory; returns its `metrics.json`. A finished run is not trained again."""
    with Run.open(config.output_dir, config, "sft") as job:
        if finished(job):
            return job.stored_result()
        prefs = read_preferences(config.data.path, config.data.split)
        base = policy_store.load_base(
            config.model.name, adapter_layers=config.model.adapter_layers, dtype=config.model.dtype
        )
        rows = sft_rows(
            prefs,
            base.tokenizer,
            completions=config.completions,
            row_length=config.train.row_length,
            max_positions=base.config.max_positions,
        )
        params, spec = _train(config, job, base, rows)
        policy_store.save_policy(
            job.directory, params, spec, base_record(config, base, "sft"), full=config.tune.mode == "full"
        )
        return close(job, len(rows.weight))


def _train(
    config: Any, job: Run, base: policy_store.Base, rows: SFTRows
) -> tuple[PolicyParams, AdapterSpec | None]:
    full = config.tune.mode == "full"
    spec = None if full else AdapterSpec(config.tune.lora_rank, config.tune.lora_alpha)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    hidden = None if full else cached_hidden(graphdef, params, rows.packed)
    settings = traced(sft.SFTSettings(optimizer=config.optimizer, num_steps=config.train.steps))
    state = optim.init_state(trained_parts(params, full), settings.optimizer, run_key)
    step = functools.partial(
        sft.step,
        frozen=frozen_parts(params, full),
        settings=settings,
        program=sft.SFTProgram(graphdef, config.model.dtype),
    )
    state = train.run_steps(
        job,
        state,
        step,
        batches(config, sft.SFTBatch(rows, hidden), len(rows.weight)),
        config,
        tokens_per_step=tokens_per_step(config, rows.packed),
        title="sft",
    )
    return params._replace(**state.params), spec


def fresh_policy(
    config: Any, base: policy_store.Base, spec: AdapterSpec | None
) -> tuple[nnx.GraphDef, PolicyParams, jax.Array]:
    """Graph definition and parameters at step 0, with new adapters; and the key of the run's steps."""
    graphdef, params, shapes = policy_store.base_state(base, spec, config.model.dtype, config.model.remat)
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    lora, conditioner = init_adapters(graphdef, shapes, init_key)
    return graphdef, params._replace(lora=lora, conditioner=conditioner), run_key


def finished(job: Run) -> bool:
    """Whether an earlier session completed this very run."""
    return job.resumed and (job.directory / RESULT).is_file() and policy_store.is_run(job.directory)


def close(
    job: Run, num_rows: int, diagnose: Callable[[list[dict[str, Any]]], list[Any]] | None = None
) -> dict[str, Any]:
    """Write report.html and metrics.json of a finished training run; returns the latter.

    Args:
      diagnose: rows of metrics.jsonl → findings for the report (`rlhf.train.diagnosis.detectors.diagnose`).
    """
    from rlhf.report import write_training_report

    rows = read_metrics(job.directory)
    findings = [] if diagnose is None else [finding._asdict() for finding in diagnose(rows)]
    write_training_report(job.directory, rows, findings)
    last = {name: value for name, value in rows[-1].items() if not name.startswith("perf/")}
    job.write_result(last | {"run_dir": str(job.directory), "num_rows": num_rows})
    return read_result(job.directory)


def trained_parts(params: PolicyParams, full: bool, conditioned: bool = False) -> dict[str, Any]:
    """What the optimiser changes: base (in float32) or LoRA, and the conditioner where it has parameters."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params.base) if full else None
    parts = {"base": wide} if full else {"lora": params.lora}
    conditioned = conditioned and bool(jax.tree.leaves(params.conditioner))
    return parts | ({"conditioner": params.conditioner} if conditioned else {})


def frozen_parts(params: PolicyParams, full: bool) -> PolicyParams:
    """The parameters with the trained base left out, so that it can be donated."""
    return params._replace(base=None) if full else params


def base_record(config: Any, base: policy_store.Base, kind: str) -> dict[str, Any]:
    """What every policy.json says of the model underneath."""
    date = base.tokenizer.template_date
    return ({"template_date": date} if date else {}) | {
        "kind": kind,
        "base": str(Path(base.name).resolve() if policy_store.is_run(base.name) else base.directory),
        "base_fingerprint": base.fingerprint,
        "adapter_layers": config.model.adapter_layers,
        "dtype": config.model.dtype,
        "seed": config.seed,
    }


def tokens_per_step(config: Any, packed: PackedRows) -> int:
    """Completion tokens of an average step."""
    per_row = float(np.mean(packed.member.any(axis=1).sum(axis=1)))
    return int(per_row * config.train.batch_rows * config.train.accumulation_steps)


def batches(config: Any, data: Any, num_rows: int) -> Callable[[int], Any]:
    """Step number → its rows of `data` (an `SFTBatch` or `DPOBatch` of the whole data set), cut into micro-batches."""
    accumulation = config.train.accumulation_steps

    def batch_of(step: int) -> Any:
        index = batch_rows(config.seed, step, num_rows, config.train.batch_rows * accumulation)
        return microbatches(data, index, accumulation)

    return batch_of
