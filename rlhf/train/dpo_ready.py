"""A preference run before its first step, in two parts: what runs share that differ in numbers only, and what is one run's own.

material   the frozen model, rows with their reference log-probs, what is held out: none of it depends on a number of the
           loss or the optimiser, or on the seed
Ready      adapters, optimiser state, order of the rows, numbers for compiled code
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rewards.basis.store import FittedBasis
from rewards.data.read import require_people
from rewards.data.split import prompt_text
from rewards.people.population import People
from rewards.types import Preferences
from rlhf.mesh import place
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.policy.batches import PairRows
from rlhf.policy.conditioning import Population
from rlhf.policy.logprobs import PolicyParams, cached_hidden
from rlhf.policy.rails import in_force
from rlhf.train import by_length, held_out, memory, optim
from rlhf.train import dpo_parts as parts
from rlhf.train import dpo_step as dpo
from rlhf.train.config import DPOConfig
from rlhf.train.guardrails import checks as guard_checks
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.length import settled
from rlhf.train.sft import (
    base_record,
    fresh_policy,
    frozen_parts,
    tokens_per_step,
    trained_parts,
    with_adapters,
)
from rlhf.train.trained import Trained


@dataclasses.dataclass(frozen=True)
class Material:
    """What runs share that differ in numbers only.

    Attributes:
      rewards, people: whose coefficients condition the policy, rails in force; None without people. given: as they came.
      seed, params, key: a run's seed, the parameters with its fresh adapters, and the key of its steps.
      division: rows to learn from and rows held out; None where all are learned from.
      annotated: what policy.json says of recorded answers.
    """

    base: policy_store.Base
    given: FittedBasis | None
    rewards: FittedBasis | None
    people: People | None
    spec: AdapterSpec | None
    graphdef: nnx.GraphDef
    seed: int
    params: PolicyParams
    key: jax.Array
    data: dpo.DPOBatch
    division: held_out.Division | None
    annotated: dict[str, Any]

    def adapters(self, seed: int) -> tuple[PolicyParams, jax.Array]:
        """Parameters with the fresh adapters of a run of this seed, and the key of its steps."""
        if seed == self.seed:
            return self.params, self.key
        return with_adapters(self.graphdef, self.params, self.params, seed)


def material_of(
    config: DPOConfig,
    prefs: Preferences,
    base: policy_store.Base,
    rewards: FittedBasis | None,
    people: People | None,
    directory: Path | None,
) -> Material:
    """Rows, reference and model of a run.

    Args:
      directory: keeps the reference log-probs; None keeps nothing on disk.
    """
    if config.loss.kind == "observed":
        assert people is not None, "their own labels need people"
        prefs = parts.known_people(require_people(prefs, "loss.kind observed"), people)
    annotation = parts.annotation_mixture(config, prefs, rewards, people)
    if not config.loss.personal:
        rewards = people = None
    given = rewards
    if rewards is not None:
        rewards = in_force(config.rails, rewards)
        parts.refuse_own_labels(config, rewards)
    rows = parts.build_rows(config, prefs, base, people, annotation)
    found = _division(config, prefs, rows)
    config = settled(config, base, rows.packed if found is None else rows.packed.take(found.train))
    spec = parts.adapter_spec(config, None if rewards is None else rewards.basis.gauge.names, base)
    graphdef, params, key = fresh_policy(config, base, spec)
    wide = by_length.widths(config, rows.packed)
    hidden = None if config.tune.mode == "full" else cached_hidden(graphdef, params, rows.packed, wide)
    cache = None if directory is None else directory / "cache"
    reference = parts.reference_logprobs(cache, base, graphdef, params, rows, hidden, wide)
    checks = None if config.guardrails is None else guard_checks.of_rows(config.guardrails, prefs, rows.item)
    data = dpo.DPOBatch(rows, reference, parts.item_rewards(rewards, prefs, rows), hidden, checks)
    memory.check_rows(config, base, data, rows.packed)
    annotated = {"annotation": annotation.record()} if annotation else {}
    return Material(
        base, given, rewards, people, spec, graphdef, config.seed, params, key, data, found, annotated
    )


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


@dataclasses.dataclass(frozen=True)
class Ready:
    """One run before its first step.

    Attributes:
      config: its length and rows settled.
      state, population, settings, frozen, program: arguments of `dpo_step.step`; the state is donated.
      batch_of: step number → batch. evaluation: measures on what is held out; None where nothing is.
    """

    config: DPOConfig
    material: Material
    params: PolicyParams
    state: optim.TrainState
    population: Population | None
    settings: dpo.DPOSettings
    frozen: PolicyParams
    program: dpo.DPOProgram
    batch_of: Callable[[int], PyTree]
    tokens_per_step: int
    evaluation: held_out.HeldOut | None

    def trained(self, state: optim.TrainState) -> Trained:
        """The policy to keep when `state` is the last."""
        record = base_record(self.config, self.material.base, "dpo")
        record |= parts.personal_record(self.config, self.material.given)
        if self.evaluation is not None:
            state = self.evaluation.chosen(state)
            record |= self.evaluation.record()
        record |= self.material.annotated
        params = self.params._replace(**state.params)
        num_rows = len(self.material.data.rows.user)
        if self.material.division is not None:
            num_rows = len(self.material.division.train)
        full = self.config.tune.mode == "full"
        return Trained(self.material.base, params, self.material.spec, record, full, num_rows)


def ready(config: DPOConfig, material: Material, directory: Path | None, own: optim.Own = None) -> Ready:
    """One run over this material.

    Args:
      directory: keeps the best state where it is not the last; None keeps it in memory. own: a user's own optimiser.
    """
    data, found, full = material.data, material.division, config.tune.mode == "full"
    packed = data.rows.packed
    config = settled(config, material.base, packed if found is None else packed.take(found.train))
    params, key = material.adapters(config.seed)
    drawn_from = parts.population(config, material.rewards, material.people)
    settings, drawn_from = place.everywhere((parts.settings_of(config), drawn_from))
    program = parts.program_of(config, material.graphdef, drawn_from is not None, own)
    trained = trained_parts(params, full, conditioned=drawn_from is not None)
    state = optim.init_state(trained, settings.optimizer, key, own)
    if config.guardrails is not None:
        state = state._replace(
            guard=place.everywhere(
                GuardState.start(config.guardrails, drawn_from, config.loss.dpo_beta, config.rail.eta)
            )
        )
    frozen = frozen_parts(params, full)
    evaluation, learned = None, data
    if found is not None:
        learned = jax.tree.map(lambda leaf: leaf[found.train], data)
        measure = _measure(config, data, found.held_out, frozen, drawn_from, key, settings, program)
        evaluation = held_out.HeldOut(config.train, measure, directory)
    return Ready(
        config,
        material,
        params,
        state,
        drawn_from,
        settings,
        frozen,
        program,
        by_length.batches(config, learned, learned.rows.packed),
        tokens_per_step(config, learned.rows.packed),
        evaluation,
    )


def _measure(
    config: DPOConfig,
    data: dpo.DPOBatch,
    index: np.ndarray,
    frozen: PolicyParams,
    drawn_from: Population | None,
    key: jax.Array,
    settings: dpo.DPOSettings,
    program: dpo.DPOProgram,
) -> Callable[[optim.TrainState], dict[str, jax.Array]]:
    """State → metrics on the held-out rows `index`."""
    rows = data._replace(hidden=None)  # it would be on the device whole
    assert config.train.batch_rows is not None, "settled with the length"
    held, real = place.batch(held_out.in_batches(rows, index, config.train.batch_rows), 1)
    drawn = jax.random.fold_in(key, held_out.KEY)

    def measure(state: optim.TrainState) -> dict[str, jax.Array]:
        rest = (held, real, frozen, drawn_from, jax.random.clone(drawn), settings)
        return dpo.evaluate(state.params, *rest, program=program, guard=state.guard)

    return measure
