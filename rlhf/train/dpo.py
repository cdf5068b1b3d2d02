"""`chorus train dpo`: pairs and a reward run → one policy conditioned on coefficients (or an ordinary one)."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards import hashed
from rewards.annotation.basis import run_margins
from rewards.annotation.mixture import Mixture, fit_mixture
from rewards.basis.store import RewardRun, load_reward_run
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.people.population import People, load_people
from rewards.types import Preferences
from rlhf.models.adapters import AdapterSpec
from rlhf.models.conditioner_kinds import MAX_INNER
from rlhf.models.conditioners import make_words
from rlhf.phi import encoder
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows, pair_rows
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.logprobs import PolicyParams, all_logprobs, cached_hidden
from rlhf.run.directory import Run
from rlhf.run.record import traced
from rlhf.train import dpo_step as dpo
from rlhf.train import loop as train
from rlhf.train import optim
from rlhf.train.sft import (
    base_record,
    batches,
    close,
    finished,
    fresh_policy,
    frozen_parts,
    tokens_per_step,
    trained_parts,
)

_LOG = logging.getLogger("chorus")


def run(config: Any) -> dict[str, Any]:
    """Train and write the run directory; returns its `metrics.json`. A finished run is not trained again."""
    with Run.open(config.output_dir, config, "dpo") as job:
        if finished(job):
            return job.stored_result()
        personal = config.loss.personal
        rewards = load_reward_run(config.rewards) if personal else None
        people = load_people(rewards) if rewards else None
        prefs = read_preferences(config.data.path, config.data.split)
        prefs = known_people(prefs, people) if config.loss.kind == "observed" else prefs
        annotation = annotation_mixture(config, prefs)
        base = policy_store.load_base(
            config.model.name, adapter_layers=config.model.adapter_layers, dtype=config.model.dtype
        )
        rows = build_rows(config, prefs, base, people, annotation)
        full = config.tune.mode == "full"
        spec = adapter_spec(config, rewards, base)
        graphdef, params, run_key = fresh_policy(config, base, spec)
        hidden = None if full else cached_hidden(graphdef, params, rows.packed)
        reference = reference_logprobs(job.directory, base, graphdef, params, rows, hidden)
        data = dpo.DPOBatch(rows, reference, item_rewards(rewards, prefs, rows), hidden)
        drawn_from = population(config, rewards, people)
        state = _train(config, job, graphdef, params, data, drawn_from, run_key, full)
        params = params._replace(**state.params)
        record = base_record(config, base, "dpo") | _personal_record(config, rewards)
        record |= {"annotation": annotation.record()} if annotation else {}
        policy_store.save_policy(job.directory, params, spec, record, full=full)
        return close(job, len(rows.user))


def annotation_mixture(config: Any, prefs: Preferences) -> Mixture | None:
    """Kinds of answer under the coefficients of the reward run; None unless `loss.annotation` asks for them."""
    if config.loss.annotation == "none":
        return None
    rewards = load_reward_run(config.rewards)
    phi = encoder.item_features(rewards.basis, prefs)
    return fit_mixture(prefs, run_margins(prefs, phi, rewards.prior, load_people(rewards)))


def build_rows(
    config: Any,
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
    place = {user_id: index for index, user_id in enumerate(people.user_ids)}
    return rows._replace(user=np.array([place[prefs.user_ids[user]] for user in rows.user], np.int32))


def adapter_spec(config: Any, rewards: RewardRun | None, base: policy_store.Base) -> AdapterSpec | None:
    """Adapters of this run: LoRA unless all weights are trained, and the conditioner where there are people."""
    rank = 0 if config.tune.mode == "full" else config.tune.lora_rank
    if rewards is None:
        return AdapterSpec(rank, config.tune.lora_alpha) if rank else None
    wanted, num_basis = config.conditioner, rewards.basis.num_basis
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
        words=make_words(base.tokenizer, rewards.basis.gauge.names) if wanted.kind == "text" else None,
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


def item_rewards(rewards: RewardRun | None, prefs: Preferences, rows: PairRows) -> np.ndarray:
    """φ of every row's completions, float32[R, C, K]; 0 on padding, K = 0 without people."""
    if rewards is None:
        return np.zeros((*rows.item.shape, 0), np.float32)
    phi = encoder.item_features(rewards.basis, prefs)
    return np.where((rows.item >= 0)[:, :, None], phi[rows.item], 0.0).astype(np.float32)


def reference_logprobs(
    directory: Path, base: policy_store.Base, graphdef: Any, params: PolicyParams, rows: PairRows, hidden: Any
) -> np.ndarray:
    """log π_ref of every completion, float32[R, C]; computed once, kept in the run's cache/.

    Fresh adapters add exactly nothing, so the policy at its start is the reference.
    """
    return hashed.cached(
        directory / "cache",
        [base.fingerprint, base.stages, rows.packed.tokens.tolist(), rows.packed.end.tolist()],
        lambda: all_logprobs(graphdef, params, rows.packed, hidden),
        prefix="ref_logprobs-",
    )


def population(config: Any, rewards: RewardRun | None, people: People | None) -> Population | None:
    """Whose coefficients training rows get; None without people."""
    if rewards is None:
        return None
    return Population.from_posteriors(rewards.prior, list(people.posteriors), config.users.extreme_sd)


def _train(
    config: Any,
    job: Run,
    graphdef: Any,
    params: PolicyParams,
    data: dpo.DPOBatch,
    drawn_from: Population | None,
    key: jax.Array,
    full: bool,
) -> optim.TrainState:
    settings = traced(
        dpo.DPOSettings(
            loss=config.loss, rail=config.rail, optimizer=config.optimizer, num_steps=config.train.steps
        )
    )
    program = dpo.DPOProgram(
        graphdef=graphdef,
        shares=UserShares.of(config.train.batch_rows, config.users) if drawn_from else None,
        with_nll=config.loss.nll_coef > 0,
        with_rail=config.rail.eta > 0,
        dtype=config.model.dtype,
    )
    trained = trained_parts(params, full, conditioned=drawn_from is not None)
    state = optim.init_state(trained, settings.optimizer, key)
    step = functools.partial(
        dpo.step,
        frozen=frozen_parts(params, full),
        population=drawn_from,
        settings=settings,
        program=program,
    )
    return train.run_steps(
        job,
        state,
        step,
        batches(config, data, len(data.rows.user)),
        config,
        tokens_per_step=tokens_per_step(config, data.rows.packed),
        title="dpo",
    )


def _personal_record(config: Any, rewards: RewardRun | None) -> dict[str, Any]:
    """What a policy must remember of the population it was trained for."""
    if rewards is None:
        return {"beta": config.loss.dpo_beta, "eta": 0.0}
    return {
        "beta": config.loss.dpo_beta,
        "eta": config.rail.eta,
        "rewards": str(Path(config.rewards).resolve()),
        "basis": rewards.hash,
        "names": list(rewards.basis.gauge.names),
        "prior": {"mean": rewards.prior.mean.tolist(), "cov": rewards.prior.cov.tolist()},
    }
