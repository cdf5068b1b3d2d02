"""`chorus train dpo`: pairs and a reward run → one policy conditioned on coefficients (or an ordinary one)."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rewards.basis.store import FittedBasis, load_reward_run
from rewards.data.read import read_preferences
from rewards.data.stream import Stream
from rewards.files import JSONObject
from rewards.people.population import People, load_people
from rewards.types import Preferences
from rlhf.mesh import place
from rlhf.mesh.devices import under_mesh
from rlhf.phi.columns import table
from rlhf.policy import store as policy_store
from rlhf.policy.rails import in_force
from rlhf.run import inputs
from rlhf.run.directory import Run
from rlhf.train import dpo_step as dpo
from rlhf.train import memory, optim, streamed
from rlhf.train.callbacks import Callback
from rlhf.train.config import DPOConfig
from rlhf.train.dpo_parts import (
    adapter_spec,
    personal_record,
    population,
    program_of,
    read_of,
    refuse_own_labels,
    settings_of,
)
from rlhf.train.dpo_ready import material_of, ready
from rlhf.train.guardrails.config import measured_columns
from rlhf.train.length import in_steps, rows_a_step
from rlhf.train.loop import run_steps
from rlhf.train.sft import base_record, fresh_policy, frozen_parts, open_base, read_by, trained_parts
from rlhf.train.trained import Trained, close, finished, run_callbacks, stored

Rewards = Callable[[Path], tuple[FittedBasis | None, People | None]]
"""Rewards of a run that come from elsewhere than its configuration; they may be kept in its directory."""


@under_mesh
def run(
    config: DPOConfig,
    *,
    prefs: Preferences | None = None,
    base: policy_store.Base | None = None,
    rewards: Rewards | None = None,
    callbacks: Sequence[Callback] = (),
    own: optim.Own = None,
) -> JSONObject:
    """Train and write the run directory; returns its `metrics.json`. A finished run is not trained again.

    Args:
      prefs, base, callbacks, own: as in `train`. rewards: run directory → rewards and people of `train`. What is None is read
        from where the configuration says.
    """
    if config.data.stream:
        streamed.check(config)
    with Run.open(config.output_dir, config, "dpo") as job:
        done = finished(job)
        basis = people = stream = None
        if rewards is not None:
            basis, people = rewards(job.directory)
        else:
            basis, people = rewards_of(config)
        if prefs is None and config.data.stream:
            stream = Stream(config.data.path, config.data.columns, config.data.split)
        elif prefs is None:
            prefs = read_preferences(
                config.data.path, config.data.split, columns=config.data.columns, people=False
            )
        found = read_for(config, prefs if stream is None else stream, base, basis, people)
        inputs.check(job, found, begun=done or None)
        if done:
            return stored(job)
        beside, base = (
            run_callbacks(job, config.train, "dpo", callbacks, track=config.track),
            base or open_base(config),
        )
        if stream is not None:
            trained = train_stream(config, stream, base, basis, people, beside, own=own)
        else:
            assert prefs is not None, "read, where it is no stream"
            trained = train(config, prefs, base, basis, people, beside, directory=job.directory, own=own)
        trained.save(job.directory)
        return close(job, trained)


def rewards_of(config: DPOConfig) -> tuple[FittedBasis | None, People | None]:
    """The reward run and its people, where the loss asks for them."""
    if not config.loss.personal and config.loss.annotation == "none":
        return None, None
    assert config.rewards is not None, "asked for where the configuration is read"
    run = load_reward_run(config.rewards)
    return run, load_people(run)


def read_for(
    config: DPOConfig,
    rows: Preferences | Stream | None,
    base: policy_store.Base | None,
    basis: FittedBasis | None,
    people: People | None,
) -> dict[str, dict[str, str]]:
    """Everything that a run reads, by content (`rlhf.run.inputs`)."""
    found = read_by(config, rows, base) | read_of(basis, people)
    if config.guardrails is not None:
        found |= table.made_of(measured_columns(config.guardrails))
    return found


@under_mesh
def train(
    config: DPOConfig,
    prefs: Preferences,
    base: policy_store.Base,
    rewards: FittedBasis | None = None,
    people: People | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    directory: Path | None = None,
    own: optim.Own = None,
) -> Trained:
    """Train in memory.

    Args:
      config: everything but its paths counts.
      rewards, people: the basis and whom it was fitted on; None for a policy for everybody.
      callbacks: called by the loop.
      directory: keeps the reference log-probs, and the best state where it is not the last; None keeps nothing on disk.
      own: a user's own optimiser.
    """
    begun = ready(config, material_of(config, prefs, base, rewards, people, directory), directory, own)
    state = run_steps(
        begun.state,
        functools.partial(
            dpo.step,
            frozen=begun.frozen,
            population=begun.population,
            settings=begun.settings,
            program=begun.program,
        ),
        begun.batch_of,
        begun.config.train,
        tokens_per_step=begun.tokens_per_step,
        callbacks=callbacks,
        evaluate=begun.evaluation,
    )
    return begun.trained(state)


@under_mesh
def train_stream(
    config: DPOConfig,
    stream: Stream,
    base: policy_store.Base,
    rewards: FittedBasis | None = None,
    people: People | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    own: optim.Own = None,
) -> Trained:
    """Train on rows that are read when they are visited; arguments and errors as of `train`."""
    streamed.check(config)
    memory.check_pass(config)
    given, names, personal = (rewards if config.loss.personal else None), None, None
    if given is not None:
        assert people is not None, "rewards come with their people"
        used = in_force(config.rails, given)
        refuse_own_labels(config, used)
        names, personal = used.basis.gauge.names, streamed.personal_of(config, stream, used, people)
        drawn_from = place.everywhere(population(config, used, people))
    else:
        drawn_from = None
    num_rows = len(stream) if personal is None or personal.own is None else len(personal.own.row)
    config = in_steps(config, num_rows, rows_a_step(config))
    full, spec = config.tune.mode == "full", adapter_spec(config, names, base)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    conditioned = drawn_from is not None
    reference = params._replace(**jax.tree.map(jnp.copy, trained_parts(params, False, conditioned)))
    if full:  # the state is donated, and π_ref is asked at every step
        reference = reference._replace(base=jax.tree.map(jnp.copy, params.base))
    settings = place.everywhere(settings_of(config))
    state = optim.init_state(trained_parts(params, full, conditioned), settings.optimizer, run_key, own)
    frozen, program = frozen_parts(params, full), program_of(config, graphdef, conditioned, own)
    step = functools.partial(
        dpo.step, frozen=frozen, population=drawn_from, settings=settings, program=program
    )
    state = run_steps(
        state,
        step,
        streamed.batches(config, stream, base, graphdef, reference, personal),
        config.train,
        tokens_per_step=lambda metrics: 2 * rows_a_step(config) * metrics["train/completion_tokens"],
        callbacks=callbacks,
    )
    record = base_record(config, base, "dpo") | personal_record(config, given)
    return Trained(base, params._replace(**state.params), spec, record, full, num_rows)
