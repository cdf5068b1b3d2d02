"""What preference training is made of: rows, labels and coefficients from data and rewards, adapters, settings, the record."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from rewards import hashed
from rewards.annotation.basis import run_margins
from rewards.annotation.mixture import Mixture, fit_mixture
from rewards.basis.store import FittedBasis, RewardRun
from rewards.data.read import require_people
from rewards.errors import UserError
from rewards.files import JSONObject, sha256_json
from rewards.people.population import People
from rewards.types import Preferences
from rlhf.models.adapters import AdapterSpec
from rlhf.models.conditioner_kinds import MAX_INNER
from rlhf.models.conditioners import make_words
from rlhf.phi import encoder
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows, pair_rows
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.lengths import Widths
from rlhf.policy.logprobs import PolicyParams, all_logprobs
from rlhf.policy.rails import recorded
from rlhf.run import inputs, processes
from rlhf.run.record import traced
from rlhf.train import dpo_step as dpo
from rlhf.train import optim
from rlhf.train.config import DPOConfig
from rlhf.train.length import num_steps
from rlhf.train.rl.config import RLConfig

_LOG = logging.getLogger("chorus")


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
    widths: Sequence[Widths] | None = None,
) -> np.ndarray:
    """log π_ref of every completion, float32[R, C]; computed once, kept in the folder `cache` where there is one.

    Fresh adapters add exactly nothing, so the policy at its start is the reference.
    """
    if cache is None or processes.several():  # one process might find them where another does not
        return all_logprobs(graphdef, params, rows.packed, hidden, widths=widths)
    key = [base.fingerprint, base.stages, rows.packed.tokens.tolist(), rows.packed.end.tolist()]
    return hashed.cached(
        cache,
        [*key, dict(base.files)],
        lambda: all_logprobs(graphdef, params, rows.packed, hidden, widths=widths),
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
        skip=config.train.on_nonfinite == "skip",
    )


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
