"""`chorus train dpo`: pairs and a reward run → one policy conditioned on coefficients (or an ordinary one)."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards import hashed
from rewards.annotation.basis import run_margins
from rewards.annotation.mixture import Mixture, fit_mixture
from rewards.basis.store import FittedBasis, RewardRun, load_reward_run
from rewards.data.read import read_preferences, require_people
from rewards.data.split import prompt_text
from rewards.data.stream import Stream
from rewards.errors import UserError
from rewards.files import JSONObject, sha256_json
from rewards.people.population import People, load_people
from rewards.types import Preferences
from rlhf.mesh import place
from rlhf.mesh.devices import under_mesh
from rlhf.models.adapters import AdapterSpec
from rlhf.models.conditioner_kinds import MAX_INNER
from rlhf.models.conditioners import make_words
from rlhf.phi import encoder
from rlhf.phi.columns import table
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows, pair_rows
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.logprobs import PolicyParams, all_logprobs, cached_hidden
from rlhf.policy.rails import in_force, recorded
from rlhf.run import inputs, processes
from rlhf.run.directory import Run
from rlhf.run.record import traced
from rlhf.train import dpo_step as dpo
from rlhf.train import held_out, memory, optim, streamed
from rlhf.train.callbacks import Callback
from rlhf.train.config import DPOConfig
from rlhf.train.guardrails import checks as guard_checks
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.guardrails.config import measured_columns
from rlhf.train.length import in_steps, num_steps, rows_a_step, settled
from rlhf.train.loop import run_steps
from rlhf.train.rl.config import RLConfig
from rlhf.train.sft import (
    base_record,
    batches,
    fresh_policy,
    frozen_parts,
    open_base,
    read_by,
    tokens_per_step,
    trained_parts,
)
from rlhf.train.trained import Trained, close, finished, run_callbacks, stored

Rewards = Callable[[Path], tuple[FittedBasis | None, People | None]]
"""Rewards of a run that come from elsewhere than its configuration; they may be kept in its directory."""

_LOG = logging.getLogger("chorus")


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
        elif config.loss.personal or config.loss.annotation != "none":
            assert config.rewards is not None, "asked for where the configuration is read"
            run = load_reward_run(config.rewards)
            basis, people = run, load_people(run)
        if prefs is None and config.data.stream:
            stream = Stream(config.data.path, config.data.columns)
        elif prefs is None:
            prefs = read_preferences(
                config.data.path, config.data.split, columns=config.data.columns, people=False
            )
        found = read_by(config, prefs if stream is None else stream, base) | read_of(basis, people)
        if config.guardrails is not None:
            found |= table.made_of(measured_columns(config.guardrails))
        inputs.check(job, found, begun=done or None)
        if done:
            return stored(job)
        beside, base = (
            run_callbacks(job, config.train, "dpo", callbacks, track=config.track),
            base or open_base(config),
        )
        if stream is not None:
            trained = train_stream(config, stream, base, beside, own=own)
        else:
            assert prefs is not None, "read, where it is no stream"
            trained = train(config, prefs, base, basis, people, beside, directory=job.directory, own=own)
        trained.save(job.directory)
        return close(job, trained)


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
    if config.loss.kind == "observed":
        assert people is not None, "their own labels need people"
        prefs = known_people(require_people(prefs, "loss.kind observed"), people)
    annotation = annotation_mixture(config, prefs, rewards, people)
    if not config.loss.personal:
        rewards = people = None
    given = rewards
    if rewards is not None:
        rewards = in_force(config.rails, rewards)
        refuse_own_labels(config, rewards)
    rows = build_rows(config, prefs, base, people, annotation)
    found = _division(config, prefs, rows)
    config = settled(config, base, rows.packed if found is None else rows.packed.take(found.train))
    full = config.tune.mode == "full"
    spec = adapter_spec(config, None if rewards is None else rewards.basis.gauge.names, base)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    hidden = None if full else cached_hidden(graphdef, params, rows.packed)
    cache = None if directory is None else directory / "cache"
    reference = reference_logprobs(cache, base, graphdef, params, rows, hidden)
    checks = None if config.guardrails is None else guard_checks.of_rows(config.guardrails, prefs, rows.item)
    data = dpo.DPOBatch(rows, reference, item_rewards(rewards, prefs, rows), hidden, checks)
    memory.check_rows(config, base, data, rows.packed)
    drawn_from = population(config, rewards, people)
    state, more = _train(
        config, callbacks, graphdef, params, data, found, drawn_from, run_key, full, own, directory
    )
    params = params._replace(**state.params)
    record = base_record(config, base, "dpo") | personal_record(config, given) | more
    record |= {"annotation": annotation.record()} if annotation else {}
    return Trained(base, params, spec, record, full, len(rows.user) if found is None else len(found.train))


@under_mesh
def train_stream(
    config: DPOConfig,
    stream: Stream,
    base: policy_store.Base,
    callbacks: Sequence[Callback] = (),
    *,
    own: optim.Own = None,
) -> Trained:
    """Train on rows that are read when they are visited; arguments and errors as of `train`."""
    streamed.check(config)
    memory.check_pass(config)
    config = in_steps(config, len(stream), rows_a_step(config))
    full, spec = config.tune.mode == "full", adapter_spec(config, None, base)
    graphdef, params, run_key = fresh_policy(config, base, spec)
    reference = params._replace(**jax.tree.map(jnp.copy, trained_parts(params, False)))
    if full:  # the state is donated, and π_ref is asked at every step
        reference = reference._replace(base=jax.tree.map(jnp.copy, params.base))
    settings = place.everywhere(settings_of(config))
    state = optim.init_state(trained_parts(params, full), settings.optimizer, run_key, own)
    frozen, program = frozen_parts(params, full), program_of(config, graphdef, False, own)
    step = functools.partial(dpo.step, frozen=frozen, population=None, settings=settings, program=program)
    state = run_steps(
        state,
        step,
        streamed.batches(config, stream, base, graphdef, reference),
        config.train,
        tokens_per_step=lambda metrics: 2 * rows_a_step(config) * metrics["train/completion_tokens"],
        callbacks=callbacks,
    )
    record = base_record(config, base, "dpo") | personal_record(config, None)
    return Trained(base, params._replace(**state.params), spec, record, full, len(stream))


def _division(config: DPOConfig, prefs: Preferences, rows: PairRows) -> held_out.Division | None:
    """Rows that are learned from and rows that are held out; None where none are.

    By person where rows carry people's own labels (else a pair of theirs is in other people's rows, too), or by prompt.
    """
    if config.train.evaluate_every is None:
        return None
    prompts = prefs.item_prompt[rows.item[:, 0]]
    return held_out.divide(
        config.train.evaluate_share,
        prefs.source,
        people=[str(user) for user in rows.user] if (rows.user >= 0).all() else None,
        prompts=[prompt_text(prefs.prompts[prompt]) for prompt in prompts],
    )


def read_of(rewards: FittedBasis | None, people: People | None) -> dict[str, dict[str, str]]:
    """What a run reads of its rewards: the basis, its prior, whom it was fitted on, and the encoder's tokenizer and settings."""
    if rewards is None:
        return {}
    found = {"basis": rewards.hash, "prior": inputs.arrays([rewards.prior.mean, rewards.prior.cov])}
    if people is not None:
        posteriors = people.posteriors
        moments = [part for one in posteriors for part in (one.mean, one.precision)]
        found["people"] = sha256_json([*people.user_ids, inputs.arrays(moments)])
    if rewards.rails is not None:
        found["rails"] = rewards.rails.hash
    settings = rewards.basis.encoder
    if settings["kind"] in encoder.MODELS:
        found |= {f"encoder {name}": digest for name, digest in encoder.files_now(settings).items()}
    return {"rewards": found}


def annotation_mixture(
    config: DPOConfig, prefs: Preferences, rewards: FittedBasis | None, people: People | None
) -> Mixture | None:
    """Kinds of answer under the coefficients of the rewards; None unless `loss.annotation` asks for them."""
    if config.loss.annotation == "none" or rewards is None:
        return None
    assert people is not None, "rewards come with their people"
    phi = encoder.items_phi(rewards.basis, require_people(prefs, "loss.annotation mixture"))
    return fit_mixture(prefs, run_margins(prefs, phi, rewards.prior, people))


def build_rows(
    config: DPOConfig,
    prefs: Preferences,
    base: policy_store.Base,
    people: People | None,
    annotation: Mixture | None = None,
) -> PairRows:
    """Packed rows of this run; with observed labels `user` indexes the reward run's people."""
    if annotation:
        prefs = dataclasses.replace(prefs, outcome=annotation.attitude)
    rows = pair_rows(
        prefs,
        base.tokenizer,
        observed=config.loss.kind not in ("soft", "regression"),
        size=config.groups.completions,
        max_positions=base.config.max_positions,
        weight=annotation.weight if annotation else None,
    )
    if config.loss.kind != "observed":
        return rows
    assert people is not None, "their own labels need people"
    place = {user_id: index for index, user_id in enumerate(people.user_ids)}
    return rows._replace(user=np.array([place[prefs.user_ids[user]] for user in rows.user], np.int32))


def adapter_spec(
    config: DPOConfig | RLConfig, names: tuple[str, ...] | None, base: policy_store.Base
) -> AdapterSpec | None:
    """Adapters of this run: LoRA unless all weights are trained, and the conditioner where there are people.

    Args:
      names: of the outputs of the basis; None without people.
    """
    rank = 0 if config.tune.mode == "full" else config.tune.lora_rank
    if names is None:
        return AdapterSpec(rank, config.tune.lora_alpha) if rank else None
    wanted, num_basis = config.conditioner, len(names)
    if wanted.kind == "low_rank" and num_basis * wanted.rank > MAX_INNER:
        _LOG.warning(
            f"conditioner.rank {wanted.rank} times {num_basis} basis outputs is {num_basis * wanted.rank}; above "
            f"{MAX_INNER} the conditioner slows every step noticeably, rank {max(MAX_INNER // num_basis, 1)} does not"
        )
    return AdapterSpec(
        rank,
        config.tune.lora_alpha,
        num_basis,
        basis_rank=wanted.rank if wanted.kind in ("low_rank", "logit_heads") else 0,
        kind=wanted.kind,
        slots=wanted.slots if wanted.kind == "prefix" else 0,
        shift=wanted.shift,
        words=make_words(base.tokenizer, names) if wanted.kind == "text" else None,
    )


def known_people(prefs: Preferences, people: People) -> Preferences:
    """Comparisons of people whose coefficients the reward run has fitted (for their own labels)."""
    fitted = set(people.user_ids)
    known = np.array([user_id in fitted for user_id in prefs.user_ids])
    kept = prefs.select(known[prefs.user_index])
    if not kept.num_comparisons:
        raise UserError(
            f"{prefs.source}: none of its {prefs.num_users} people was in the fit of the reward run; "
            "fit the rewards on this data or choose loss.kind=soft"
        )
    return kept


def item_rewards(rewards: FittedBasis | None, prefs: Preferences, rows: PairRows) -> np.ndarray:
    """φ of every row's completions, float32[R, C, K]; 0 on padding, K = 0 without people."""
    if rewards is None:
        return np.zeros((*rows.item.shape, 0), np.float32)
    phi = encoder.items_phi(rewards.basis, prefs)
    return np.where((rows.item >= 0)[:, :, None], phi[rows.item], 0.0).astype(np.float32)


def reference_logprobs(
    cache: Path | None,
    base: policy_store.Base,
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    rows: PairRows,
    hidden: np.ndarray | None,
) -> np.ndarray:
    """log π_ref of every completion, float32[R, C]; computed once, kept in the folder `cache` where there is one.

    Fresh adapters add exactly nothing, so the policy at its start is the reference.
    """
    if cache is None or processes.several():  # one process might find them where another does not
        return all_logprobs(graphdef, params, rows.packed, hidden)
    key = [base.fingerprint, base.stages, rows.packed.tokens.tolist(), rows.packed.end.tolist()]
    return hashed.cached(
        cache,
        [*key, dict(base.files)],
        lambda: all_logprobs(graphdef, params, rows.packed, hidden),
        prefix="ref_logprobs-",
    )


def population(config: DPOConfig, rewards: FittedBasis | None, people: People | None) -> Population | None:
    """Whose coefficients training rows get; None without people."""
    if rewards is None:
        return None
    assert people is not None, "rewards come with their people"
    posteriors, beta = list(people.posteriors), config.loss.dpo_beta
    return Population.from_posteriors(rewards.prior, posteriors, config.users.extreme_sd, rewards.rails, beta)


def settings_of(config: DPOConfig) -> dpo.DPOSettings:
    """What the step reads of a settled configuration, `traced`."""
    return traced(
        dpo.DPOSettings(
            loss=config.loss,
            rail=config.rail,
            guardrails=config.guardrails,
            optimizer=config.optimizer,
            num_steps=num_steps(config),
        )
    )


def program_of(
    config: DPOConfig, graphdef: nnx.GraphDef, conditioned: bool, own: optim.Own = None
) -> dpo.DPOProgram:
    """What fixes the step besides."""
    return dpo.DPOProgram(
        graphdef=graphdef,
        shares=UserShares.of(config.users) if conditioned else None,
        with_nll=config.loss.nll_coef > 0,
        with_rail=config.rail.eta > 0,
        dtype=config.model.dtype,
        own=own,
    )


def _train(
    config: DPOConfig,
    callbacks: Sequence[Callback],
    graphdef: nnx.GraphDef,
    params: PolicyParams,
    data: dpo.DPOBatch,
    found: held_out.Division | None,
    drawn_from: Population | None,
    key: jax.Array,
    full: bool,
    own: optim.Own,
    directory: Path | None,
) -> tuple[optim.TrainState, JSONObject]:
    """The state to keep, and what policy.json says of its choice; without `found` all rows are learned from."""
    settings, drawn_from = place.everywhere((settings_of(config), drawn_from))
    program = program_of(config, graphdef, drawn_from is not None, own)
    trained = trained_parts(params, full, conditioned=drawn_from is not None)
    state = optim.init_state(trained, settings.optimizer, key, own)
    if config.guardrails is not None:
        state = state._replace(
            guard=place.everywhere(
                GuardState.start(config.guardrails, drawn_from, config.loss.dpo_beta, config.rail.eta)
            )
        )
    frozen = frozen_parts(params, full)
    step = functools.partial(
        dpo.step, frozen=frozen, population=drawn_from, settings=settings, program=program
    )
    evaluation, learned = None, data
    if found is not None:
        learned = jax.tree.map(lambda leaf: leaf[found.train], data)
        rows = data._replace(hidden=None)  # it would be on the device whole
        assert config.train.batch_rows is not None, "settled with the length"
        held, real = place.batch(held_out.in_batches(rows, found.held_out, config.train.batch_rows), 1)
        drawn = jax.random.fold_in(key, held_out.KEY)

        def measure(state: optim.TrainState) -> dict[str, jax.Array]:
            rest = (held, real, frozen, drawn_from, jax.random.clone(drawn), settings)
            return dpo.evaluate(state.params, *rest, program=program, guard=state.guard)

        evaluation = held_out.HeldOut(config.train, measure, directory)
    state = run_steps(
        state,
        step,
        batches(config, learned, len(learned.rows.user)),
        config.train,
        tokens_per_step=tokens_per_step(config, learned.rows.packed),
        callbacks=callbacks,
        evaluate=evaluation,
    )
    return (state, {}) if evaluation is None else (evaluation.chosen(state), evaluation.record())


def personal_record(config: DPOConfig, rewards: FittedBasis | None) -> JSONObject:
    """What a policy must remember of the population it was trained for."""
    if rewards is None:
        return {"beta": config.loss.dpo_beta, "eta": 0.0}
    return {
        "beta": config.loss.dpo_beta,
        "eta": config.rail.eta,
        "rewards": str(rewards.directory.resolve()) if isinstance(rewards, RewardRun) else None,
        "basis": rewards.hash,
        "names": list(rewards.basis.gauge.names),
        "prior": {"mean": rewards.prior.mean.tolist(), "cov": rewards.prior.cov.tolist()},
        **recorded(config.rails, rewards),
    }


def refuse_own_labels(config: DPOConfig, rewards: FittedBasis) -> None:
    """People's own labels hold whatever rails take out of their coefficients.

    Raises:
      UserError: `loss.kind` observed with rails.
    """
    if rewards.rails is not None and config.loss.kind == "observed":
        raise UserError(
            f"loss.kind observed: learns from people's own labels, which the rails of the rewards ({rewards.rails}) do not "
            "reach; choose soft or regression, whose labels come from railed coefficients, or say why in rails.off"
        )
