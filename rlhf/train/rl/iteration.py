"""An iteration of reinforcement learning: what stays the same from step to step, and the step.

With a compiled reward the step is one program; otherwise the completions are decoded and rewarded between its two halves.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.mesh import place
from rlhf.phi.columns import arguments
from rlhf.phi.on_host import PromptRows
from rlhf.policy import store as policy_store
from rlhf.policy.logprobs import PolicyParams, structure
from rlhf.run.record import traced
from rlhf.train import optim
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.hints.lessons import Lessons
from rlhf.train.rl import critic_store as rl_critic
from rlhf.train.rl import prompts as rl_data
from rlhf.train.rl import samples as rl_samples
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import GRPOConfig, PPOConfig
from rlhf.train.rl.critic import Critic, init_critic
from rlhf.train.rl.prompts import PromptSet
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.settings import RLProgram
from rlhf.train.rl.sources import Source
from rlhf.train.sft import trained_parts

Value = TypeVar("Value", jax.Array, float)


class Trainer:
    """What stays the same from step to step, and the step."""

    def __init__(
        self,
        config: PPOConfig | GRPOConfig,
        base: policy_store.Base,
        graphdef: nnx.GraphDef,
        params: PolicyParams,
        key: jax.Array,
        source: Source,
        prompts: PromptSet,
        directory: Path | None,
        lessons: Lessons | None = None,
        own: optim.Own = None,
    ):
        """Arguments as of `ready.ready`; `params`, `key`: at step 0, and the key of the run's steps."""
        self.config, self.source, self.prompts, self.lessons = config, source, prompts, lessons
        self.settings = place.everywhere(traced(config.settings))
        self.term = None if lessons is None else lessons.term(graphdef)
        self.program = RLProgram(
            graphdef=graphdef,
            reference=structure(base.config, base.stages, None, config.model.dtype, config.model.remat)[0],
            shares=source.shares,
            filtered=config.rollout.filtered,
            dtype=config.model.dtype,
            extra=self.term,
            own=own,
            skip=config.train.on_nonfinite == "skip",
        )
        full = config.tune.mode == "full"
        trained = trained_parts(params, full, conditioned=source.run is not None)
        # The state is donated: what is trained must share no buffer with what stays, π_ref above all.
        trained = jax.tree.map(jnp.copy, trained)
        self.frozen = params
        if isinstance(config, PPOConfig):
            trained["critic"], self.critic_spec = _critic(config, base, params, source, key)
        guard = None
        if config.guardrails is not None:
            guard = GuardState.start(config.guardrails, source.people, config.kl.coef, config.rail.eta)
        self.state = updates.init_state(trained, self.settings, key, own, guard)
        sampling = config.rollout.sampling(config.rows)
        stop = np.array(base.tokenizer.eos_ids, np.int32)
        people, self.sampling, stop = place.sent((source.people, place.batch(sampling), stop))
        self.people, self.stop = place.everywhere((people, stop))
        self.samples = None
        if directory is not None:
            self.samples = rl_samples.Samples(directory, base.tokenizer, source, prompts.rows, config)

    def step(
        self, state: updates.RLState, batch: rl_data.PromptBatch
    ) -> tuple[updates.RLState, dict[str, jax.Array]]:
        """One iteration; the state is donated."""
        shared = (batch.prompts, self.people, self.frozen)
        rest = (self.sampling, self.stop, self.settings)
        # The teacher is the policy of the run's start, also in a session that goes on.
        extra = None
        if self.lessons is not None and self.term is not None:
            extra = self.lessons.rows(batch.number, self.frozen, self.term)
        reward, checks, extra_columns = self.source.reward, self.source.checks, {}
        if self.compiled:
            state, metrics, rollout, rewards = updates.iterate(
                state,
                *shared,
                reward.arrays,
                *rest,
                program=self.program,
                reward=reward.kernel,
                extra=extra,
                checks=None if checks is None else checks.kernel,
                check_arrays=None if checks is None else checks.arrays,
            )
        else:
            rollout = updates.draw(state, *shared, *rest, program=self.program)
            said = self.rewarded(batch, rollout)
            rewards = said.rewards
            state, metrics = updates.update(
                state,
                rollout,
                rewards,
                self.frozen,
                self.settings,
                program=self.program,
                extra=extra,
                people=self.people,
                checks=said.checks,
            )
            metrics |= {name: jnp.float32(value) for name, value in said.metrics.items()}
            extra_columns = said.extra
        if self.samples is not None:
            self.samples.take(batch, rollout, rewards, extra_columns)
        return state, named(metrics, self.source.names)

    @property
    def compiled(self) -> bool:
        """Whether the rewards and what guardrails check are parts of the compiled iteration."""
        checks = self.source.checks
        return self.source.reward.kernel is not None and (checks is None or checks.kernel is not None)

    def rewarded(self, batch: rl_data.PromptBatch, rollout: Rollout) -> "Rewarded":
        """What is computed of completions outside the compiled iteration.

        Raises:
          UserError: a reward cannot be computed; the step is named.
        """
        rows = self.prompts.rows.take(batch.index)
        try:
            with arguments.training(self.state_at(batch.number), len(batch.index)) as said:
                given = self.source.reward(rollout, rows)
                checked = self.checked(rollout, rows)
        except UserError as error:
            raise UserError(f"step {batch.number + 1}: {error}") from None
        left_out = sum(given.left_out.values()) / (len(batch.index) * len(self.source.names))
        metrics = {"train/left_out_share": left_out} | said.means("train")
        return Rewarded(place.sent(place.batch(given.phi)), checked, metrics, said.extra)

    def checked(self, rollout: Rollout, rows: PromptRows) -> jax.Array | None:
        """What the checks of guardrails say of completions, float32[B, C]; None without guardrails."""
        if self.config.guardrails is None:
            return None
        checks = self.source.checks
        if checks is None:
            return updates.check_values(None, None, rollout)
        values = place.sent(place.batch(checks(rollout, rows).phi))
        return values if values.ndim == 2 else values.sum(axis=1)

    def state_at(self, number: int, *, evaluation: bool = False) -> arguments.TrainerState:
        """What reward functions see of the training after `number` steps."""
        visited = number * self.config.rollout.prompts_per_step
        steps = self.config.train.steps
        assert steps is not None, "settled with the length"
        return arguments.TrainerState(number, steps, visited / len(self.prompts.starts), evaluation)


class Rewarded(NamedTuple):
    """What the host says of a rollout.

    Attributes:
      rewards: float32[B, K] or [B, T, K]. checks: float32[B, C], of guardrails; None without.
      metrics: beside those of the compiled step. extra: what reward functions logged of each completion.
    """

    rewards: jax.Array
    checks: jax.Array | None
    metrics: dict[str, float]
    extra: dict[str, list[object]]


def named(metrics: Mapping[str, Value], names: tuple[str, ...]) -> dict[str, Value]:
    """Numbered outputs of the basis under their names: `train/reward/0` becomes `train/reward/NAME`."""
    words = {str(k): name.replace(" ", "_").replace("/", "_") for k, name in enumerate(names)}

    def renamed(metric: str) -> str:
        head, _, last = metric.rpartition("/")
        return f"{head}/{words[last]}" if last in words else metric

    return {renamed(metric): value for metric, value in metrics.items()}


def _critic(
    config: PPOConfig, base: policy_store.Base, params: PolicyParams, source: Source, key: jax.Array
) -> tuple[Critic, JSONObject]:
    """A fresh critic, or that of `critic.start`; and what it is, for its record."""
    if config.critic.from_rewards and not source.reward.can.beginnings:
        raise UserError(
            "critic.from_rewards true: only rewards fitted over mean hidden states of a model that reads the policy's tokens "
            "(encoder.kind lm, encoder.pool mean) say something of half a completion; set it to false"
        )
    if config.critic.from_rewards and source.checks is not None and source.checks.kernel is None:
        raise UserError(
            "critic.from_rewards true: rewards stay inside the compiled iteration, and guardrails.checks are computed outside "
            "it; choose checks of kind jit or set critic.from_rewards to false"
        )
    num_basis, personal = len(source.names), source.run is not None
    spec = rl_critic.spec_of(config.critic, num_basis, personal)
    key = jax.random.fold_in(key, 2**32 - 1)  # no iteration has this number
    critic = init_critic(
        config.critic, params, base.config.width, key, num_basis=num_basis, personal=personal
    )
    if config.critic.start is not None:
        critic = rl_critic.load(config.critic.start, spec, critic, purpose(config, base, source))
    return critic, spec


def purpose(config: PPOConfig, base: policy_store.Base, source: Source) -> JSONObject:
    rewards = source.run.hash if config.critic.from_rewards and source.run is not None else None
    return rl_critic.made_for(base, source.names, rewards)
