"""A run of reinforcement learning before its first iteration."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from rewards.basis.store import RewardRun
from rewards.files import JSONObject
from rlhf.models.adapters import AdapterSpec
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams
from rlhf.train import held_out, memory, optim
from rlhf.train.dpo_parts import adapter_spec
from rlhf.train.hints.lessons import Lessons
from rlhf.train.length import in_steps
from rlhf.train.rl import critic_store as rl_critic
from rlhf.train.rl import prompts as rl_data
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import GRPOConfig, PPOConfig, RLConfig
from rlhf.train.rl.held_out import Given, Measured, divided
from rlhf.train.rl.iteration import Trainer, named, purpose
from rlhf.train.rl.prompts import PromptSet
from rlhf.train.rl.size import memory_line
from rlhf.train.rl.sources import Source
from rlhf.train.sft import base_record, fresh_policy, with_adapters
from rlhf.train.trained import Trained

_LOG = logging.getLogger("chorus")
Model = tuple[nnx.GraphDef, PolicyParams]


@dataclasses.dataclass(frozen=True)
class Ready:
    """One run before its first iteration.

    Attributes:
      config: its length settled. model, params: the policy at step 0. trainer: its iteration.
      batch_of: step number → batch. evaluation: measures on what is held out; None where nothing is.
    """

    config: PPOConfig | GRPOConfig
    base: policy_store.Base
    model: Model
    spec: AdapterSpec | None
    trainer: Trainer
    directory: Path | None
    batch_of: Callable[[int], PyTree]
    evaluation: held_out.HeldOut | None

    def tokens_per_step(self, metrics: dict[str, float]) -> float:
        return metrics["train/completion_tokens"] * self.config.rows

    def trained(self, state: updates.RLState) -> Trained:
        """The policy to keep when `state` is the last; a critic is written."""
        config, source, chosen = self.config, self.trainer.source, {}
        if self.evaluation is not None:
            state, chosen = self.evaluation.chosen(state), self.evaluation.record()
        parts = dict(state.params)
        critic = parts.pop("critic", None)
        record = base_record(config, self.base, kind_of(config))
        record |= _record(config, source, float(state.kl_coef)) | chosen
        if isinstance(config, PPOConfig) and self.directory is not None:
            made_for = purpose(config, self.base, source)
            record["critic"] = rl_critic.save(self.directory, self.trainer.critic_spec, critic, made_for)
        params, full = self.model[1]._replace(**parts), config.tune.mode == "full"
        return Trained(self.base, params, self.spec, record, full, len(self.trainer.prompts.starts))


def kind_of(config: RLConfig) -> str:
    """`ppo` or `grpo`."""
    return "ppo" if isinstance(config, PPOConfig) else "grpo"


def ready(
    config: PPOConfig | GRPOConfig,
    base: policy_store.Base,
    prompts: PromptSet,
    source: Source,
    lessons: Lessons | None = None,
    directory: Path | None = None,
    own: optim.Own = None,
    model: Model | None = None,
) -> Ready:
    """One run; arguments as of `trainer.train`.

    Args:
      model: the policy of another run over the same base, whose frozen part this one shares; None makes it.
    """
    memory.check_pass(config)
    prompts, unseen = divided(config.train, prompts)
    updates_a_step = config.algorithm.epochs * config.algorithm.minibatches
    config = in_steps(config, len(prompts.starts), config.rollout.prompts_per_step, updates_a_step)
    spec = adapter_spec(config, None if source.run is None else source.names, base)
    if model is None:
        graphdef, params, run_key = fresh_policy(config, base, spec)
    else:
        graphdef, params = model
        params, run_key = with_adapters(graphdef, params, params, config.seed)
    if config.kl.controller == "adaptive" and config.rows > config.kl.horizon:
        _LOG.warning(
            f"kl.horizon: {config.kl.horizon:g} is below the {config.rows} completions of an iteration; β reacts as if it "
            "were as many, raise it"
        )
    trainer = Trainer(config, base, graphdef, params, run_key, source, prompts, directory, lessons, own)
    hinted = (0, 0) if lessons is None else lessons.size
    if model is None:
        memory_line(config, base, trainer.state, prompts.tokens.shape[1], hinted)
    if lessons is not None and directory is not None:
        lessons.write(directory)
    evaluation = None
    if unseen is not None:
        evaluation = held_out.HeldOut(config.train, _measure(config, trainer, unseen), directory)
    batch_of = rl_data.batches(config, prompts)
    return Ready(config, base, (graphdef, params), spec, trainer, directory, batch_of, evaluation)


def _measure(
    config: PPOConfig | GRPOConfig, trainer: Trainer, unseen: PromptSet
) -> Callable[[Any], dict[str, jax.Array]]:
    """State → metrics on held-out prompts."""
    source = trainer.source
    rest = (trainer.stop, trainer.settings, trainer.program, source.reward, trainer.state_at)
    measured = Measured(config, unseen, Given(trainer.people, trainer.frozen, *rest))

    def measure(state: updates.RLState) -> dict[str, jax.Array]:
        return named(measured(state), source.names)

    return measure


def _record(config: RLConfig, source: Source, kl_coef: float) -> JSONObject:
    """What a policy must remember: the price of KL it ended with, and the population it was trained for.

    η moves along with β, so that ρ = η/(β+η), by which coefficients were shrunk in training, stays what it was.
    """
    record: JSONObject = {"beta": kl_coef, "eta": config.rail.eta * kl_coef / config.kl.coef}
    run = source.run
    if run is None:
        return record | {"names": list(source.names), "weights": np.asarray(source.people).tolist()}
    return record | {
        "rewards": str(run.directory.resolve()) if isinstance(run, RewardRun) else None,
        "basis": run.hash,
        "names": list(run.basis.gauge.names),
        "prior": {"mean": run.prior.mean.tolist(), "cov": run.prior.cov.tolist()},
        **source.rails,
        **({"trust_beta": config.kl.coef} if source.rails.get("rails") else {}),
    }
