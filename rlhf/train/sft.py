"""`chorus train sft`: read, pack, train, store."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rewards.data.examples import read_examples
from rewards.data.split import prompt_text
from rewards.data.stream import Stream
from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.mesh import place
from rlhf.mesh.devices import under_mesh
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.policy.batches import SFTRows, batch_rows, microbatches, sft_rows
from rlhf.policy.logprobs import PolicyParams, cached_hidden, init_adapters
from rlhf.policy.packing import PackedRows
from rlhf.run import inputs
from rlhf.run.directory import Run
from rlhf.run.record import traced
from rlhf.train import held_out, memory, optim, streamed
from rlhf.train import sft_step as sft
from rlhf.train.callbacks import Callback
from rlhf.train.config import SFTConfig, Supervised
from rlhf.train.length import num_steps, rows_a_step, settled
from rlhf.train.loop import Batches, run_steps
from rlhf.train.rl.config import RLConfig
from rlhf.train.trained import Trained, close, finished, run_callbacks, stored

Tuning = Supervised | RLConfig


@under_mesh
def run(
    config: SFTConfig,
    *,
    prefs: Preferences | None = None,
    base: policy_store.Base | None = None,
    callbacks: Sequence[Callback] = (),
    own: optim.Own = None,
) -> JSONObject:
    """Train and write the run directory; returns its `metrics.json`. A finished run is not trained again.

    Args:
      prefs, base, callbacks, own: as in `train`; what is None is read from where the configuration says.
    """
    if config.data.stream:
        streamed.check(config)
    with Run.open(config.output_dir, config, "sft") as job:
        done, stream = finished(job), None
        if prefs is None and config.data.stream:
            stream = Stream(config.data.path, config.data.columns, config.data.split)
        elif prefs is None:
            prefs = read_examples(config.data.path, config.data.split, config.data.columns)
        inputs.check(job, read_by(config, stream or prefs, base), begun=done or None)
        if done:
            return stored(job)
        beside = run_callbacks(job, config.train, "sft", callbacks, track=config.track)
        base = base or open_base(config)
        if stream is not None:
            trained = train_stream(config, stream, base, beside, own)
        else:
            assert prefs is not None, "read, where it is no stream"
            trained = train(config, prefs, base, beside, own, directory=job.directory)
        trained.save(job.directory)
        return close(job, trained)


class _Begun(NamedTuple):
    """Attributes:
    step: compiled, of state and batch. frozen, program: as it takes them.
    """

    state: optim.TrainState
    step: functools.partial[tuple[optim.TrainState, dict[str, jax.Array]]]
    frozen: PolicyParams
    program: sft.SFTProgram


@under_mesh
def train(
    config: SFTConfig,
    prefs: Preferences,
    base: policy_store.Base,
    callbacks: Sequence[Callback] = (),
    own: optim.Own = None,
    *,
    directory: Path | None = None,
) -> Trained:
    """Train in memory.

    Args:
      config: everything but its paths counts. callbacks: called by the loop. own: a user's own optimiser.
      directory: keeps the best state where it is not the last; None keeps it in memory.
    """
    prefs, other = (prefs, None) if config.train.evaluate_every is None else _held_out(config, prefs)
    rows, unseen = build_rows(config, prefs, base), None if other is None else build_rows(config, other, base)
    config = settled(config, base, rows.packed)
    full = config.tune.mode == "full"
    spec = None if full else AdapterSpec(config.tune.lora_rank, config.tune.lora_alpha)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    hidden = None if full else cached_hidden(graphdef, params, rows.packed)
    data = sft.SFTBatch(rows, hidden)
    memory.check_rows(config, base, data, rows.packed)
    state, step, frozen, program = _begin(config, graphdef, params, run_key, own)
    evaluation = None
    if unseen is not None:
        assert config.train.batch_rows is not None, "settled with the length"
        index = np.arange(len(unseen.weight))
        held, real = held_out.in_batches(sft.SFTBatch(unseen, None), index, config.train.batch_rows)
        held = held._replace(rows=held.rows._replace(weight=held.rows.weight * real[..., None]))
        held = place.batch(held, 1)
        evaluation = held_out.HeldOut(
            config.train,
            lambda state: sft.evaluate(state.params, held, frozen, program=program),
            directory,
        )
    state = run_steps(
        state,
        step,
        batches(config, data, len(rows.weight)),
        config.train,
        tokens_per_step=tokens_per_step(config, rows.packed),
        callbacks=callbacks,
        evaluate=evaluation,
    )
    record = base_record(config, base, "sft")
    if evaluation is not None:
        state, record = evaluation.chosen(state), record | evaluation.record()
    params = params._replace(**state.params)
    return Trained(base, params, spec, record, full, len(rows.weight))


@under_mesh
def train_stream(
    config: SFTConfig,
    stream: Stream,
    base: policy_store.Base,
    callbacks: Sequence[Callback] = (),
    own: optim.Own = None,
) -> Trained:
    """Train on examples that are read when they are visited; arguments and errors as of `train`."""
    memory.check_pass(config)
    config, first = streamed.first_rows(config, stream, streamed.example_rows, base)
    full = config.tune.mode == "full"
    spec = None if full else AdapterSpec(config.tune.lora_rank, config.tune.lora_alpha)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    state, step, *_ = _begin(config, graphdef, params, run_key, own)
    state = run_steps(
        state,
        step,
        streamed.example_batches(config, stream, base),
        config.train,
        tokens_per_step=tokens_per_step(config, first.packed),
        callbacks=callbacks,
    )
    params = params._replace(**state.params)
    return Trained(base, params, spec, base_record(config, base, "sft"), full, len(stream))


def _begin(
    config: SFTConfig, graphdef: nnx.GraphDef, params: PolicyParams, run_key: jax.Array, own: optim.Own
) -> _Begun:
    """A run before its first step."""
    full = config.tune.mode == "full"
    settings = place.everywhere(
        traced(sft.SFTSettings(optimizer=config.optimizer, num_steps=num_steps(config)))
    )
    state = optim.init_state(trained_parts(params, full), settings.optimizer, run_key, own)
    frozen, program = frozen_parts(params, full), program_of(config, graphdef, own)
    step = functools.partial(sft.step, frozen=frozen, settings=settings, program=program)
    return _Begun(state, step, frozen, program)


def program_of(config: SFTConfig, graphdef: nnx.GraphDef, own: optim.Own = None) -> sft.SFTProgram:
    """What fixes the step besides its settings."""
    return sft.SFTProgram(graphdef, config.model.dtype, own, skip=config.train.on_nonfinite == "skip")


def build_rows(config: SFTConfig, prefs: Preferences, base: policy_store.Base) -> SFTRows:
    """The data packed into rows."""
    return sft_rows(
        prefs,
        base.tokenizer,
        completions=config.completions,
        row_length=config.train.row_length,
        max_positions=base.config.max_positions,
    )


def _held_out(config: SFTConfig, prefs: Preferences) -> tuple[Preferences, Preferences]:
    """Examples that are learned from, and those that are held out: by person, prompt or row."""
    found = held_out.divide(
        config.train.evaluate_share,
        prefs.source,
        people=[prefs.user_ids[user] for user in prefs.user_index],
        prompts=[prompt_text(prefs.prompts[prompt]) for prompt in prefs.item_prompt[prefs.chosen]],
    )
    held = np.isin(np.arange(prefs.num_comparisons), found.held_out)
    return prefs.select(~held), prefs.select(held)


def read_by(
    config: Tuning, table: object, base: policy_store.Base | None = None
) -> dict[str, dict[str, str]]:
    """What every training run reads: its rows and the model, which is not loaded for it."""
    name = config.model.name
    model = policy_store.parts_of(name) if base is None else policy_store.parts(base)
    content = table.identity if isinstance(table, Stream) else inputs.content(table)
    return {"data.path": {str(config.data.path): content}, "model.name": model}


@under_mesh
def open_base(config: Tuning) -> policy_store.Base:
    """The model that is tuned.

    Raises:
      UserError: besides what loading refuses, rows of a pass that the mesh cannot divide.
    """
    memory.check_pass(config)
    model = config.model
    return policy_store.load_base(
        model.name, adapter_layers=model.adapter_layers, dtype=model.dtype, kept=model.base
    )


def fresh_policy(
    config: Tuning, base: policy_store.Base, spec: AdapterSpec | None
) -> tuple[nnx.GraphDef, PolicyParams, jax.Array]:
    """Graph definition and parameters at step 0, with new adapters; and the key of the run's steps."""
    graphdef, params, shapes = policy_store.base_state(base, spec, config.model.dtype, config.model.remat)
    memory.check_policy(config, base, shapes, conditioned=spec is not None and spec.num_basis > 0)
    params, run_key = with_adapters(graphdef, params, shapes, config.seed)
    return graphdef, params, run_key


def with_adapters(
    graphdef: nnx.GraphDef, params: PolicyParams, shapes: PolicyParams, seed: int
) -> tuple[PolicyParams, jax.Array]:
    """The parameters with the fresh adapters of a run of this seed, and the key of its steps.

    Args:
      shapes: of the adapters; those of the parameters themselves will do.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    lora, conditioner = place.parameters(init_adapters(graphdef, shapes, init_key))
    return params._replace(lora=lora, conditioner=conditioner), run_key


def trained_parts(params: PolicyParams, full: bool, conditioned: bool = False) -> dict[str, PyTree]:
    """What the optimiser changes: base (in float32) or LoRA, and the conditioner where it has parameters."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params.base) if full else None
    parts = {"base": wide} if full else {"lora": params.lora}
    conditioned = conditioned and bool(jax.tree.leaves(params.conditioner))
    return parts | ({"conditioner": params.conditioner} if conditioned else {})


def frozen_parts(params: PolicyParams, full: bool) -> PolicyParams:
    """The parameters with the trained base left out, so that it can be donated."""
    return params._replace(base=None) if full else params


def base_record(config: Tuning, base: policy_store.Base, kind: str) -> JSONObject:
    """What every policy.json says of the model underneath; `base` is None where that is in memory only."""
    place = Path(base.name).resolve() if policy_store.is_run(base.name) else base.directory
    date = base.tokenizer.template_date
    kept = {"kept": config.model.base} if config.model.base else {}
    return (
        ({"template_date": date} if date else {})
        | kept
        | {
            "kind": kind,
            "base": None if base.name == policy_store.IN_MEMORY else str(place),
            "base_fingerprint": base.fingerprint,
            "base_files": dict(base.files),
            "adapter_layers": config.model.adapter_layers,
            "dtype": config.model.dtype,
            "seed": config.seed,
        }
    )


def tokens_per_step(config: Supervised, packed: PackedRows) -> int:
    """Completion tokens of an average step."""
    per_row = float(np.mean(packed.member.any(axis=1).sum(axis=1)))
    return int(per_row * rows_a_step(config))


def batches(config: Supervised, data: PyTree, num_rows: int) -> Batches:
    """Step number → its rows of `data` (an `SFTBatch`, `DPOBatch` or `RewardRows` of all rows), cut into micro-batches."""
    accumulation = config.train.accumulation_steps
    return Batches(
        lambda step: batch_rows(config.seed, step, num_rows, rows_a_step(config)),
        lambda _, index: place.batch(microbatches(data, index, accumulation), 1),
    )
