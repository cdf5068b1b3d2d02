"""`chorus train sft`: read, pack, train, store."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards.data.read import read_preferences
from rlhf import optim, policy_store, sft, train
from rlhf.batches import SFTRows, batch_rows, microbatches, sft_rows
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import PolicyParams, cached_hidden, init_adapters
from rlhf.run import Run


def run(config: Any) -> dict[str, Any]:
    """Train and write the run directory; returns its `metrics.json`."""
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
    with Run.open(config.output_dir, config, "sft") as job:
        full = config.tune.mode == "full"
        spec = None if full else AdapterSpec(config.tune.lora_rank, config.tune.lora_alpha)
        graphdef, params, shapes = policy_store.base_state(base, spec, config.model.dtype, config.model.remat)
        init_key, run_key = jax.random.split(jax.random.key(config.seed))
        lora, conditioner = init_adapters(graphdef, shapes, init_key)
        params = params._replace(lora=lora, conditioner=conditioner)
        trained = trained_parts(params, full)
        hidden = None if full else cached_hidden(graphdef, params, rows.packed)
        hyper = optim.Hyper.from_config(config.optimizer, config.train.steps)
        state = optim.init_state(trained, hyper, run_key)
        step = functools.partial(
            sft.step,
            frozen=frozen_parts(params, full),
            hyper=hyper,
            static=sft.Static(graphdef, optim.Schedule(config.optimizer.schedule)),
        )
        state = train.run_steps(
            job, state, step, _batches(config, rows, hidden), config, tokens_per_step=_tokens(config, rows), title="sft"
        )
        params = params._replace(**state.params)
        record = base_record(config, base, "sft")
        policy_store.save_policy(Path(config.output_dir), params, spec, record, full=full)
        result = final_metrics(job) | {"run_dir": str(config.output_dir), "num_rows": len(rows.weight)}
        job.write_result(result)
        return result


def trained_parts(params: PolicyParams, full: bool, conditioned: bool = False) -> dict[str, Any]:
    """What the optimiser changes: base or LoRA, and the conditioner where there is one."""
    parts = {"base": params.base} if full else {"lora": params.lora}
    return parts | ({"conditioner": params.conditioner} if conditioned else {})


def frozen_parts(params: PolicyParams, full: bool) -> PolicyParams:
    """The parameters with the trained base left out, so that it can be donated."""
    return params._replace(base=None) if full else params


def base_record(config: Any, base: policy_store.Base, kind: str) -> dict[str, Any]:
    """What every policy.json says of the model underneath."""
    return {
        "kind": kind,
        "base": base.name if policy_store.is_run(base.name) else str(base.directory),
        "base_fingerprint": base.fingerprint,
        "adapter_layers": config.model.adapter_layers,
        "dtype": config.model.dtype,
        "seed": config.seed,
    }


def final_metrics(job: Run) -> dict[str, Any]:
    """Metrics of the last step, without wall-clock figures."""
    from rlhf.metrics import read_metrics

    last = read_metrics(job.directory)[-1]
    return {name: value for name, value in last.items() if not name.startswith("perf/") and name != "time"}


def _tokens(config: Any, rows: SFTRows) -> int:
    per_row = float(np.mean(rows.packed.member.any(axis=1).sum(axis=1)))
    return int(per_row * config.train.batch_rows * config.train.accumulation_steps)


def _batches(config: Any, rows: SFTRows, hidden: Any):
    batch = config.train.batch_rows * config.train.accumulation_steps

    def batch_of(step: int) -> sft.Batch:
        index = batch_rows(config.seed, step, len(rows.weight), batch)
        return sft.Batch(*microbatches((rows, hidden), index, config.train.accumulation_steps))

    return batch_of
