"""The configurations of `chorus train ppo` and `chorus train grpo`.

A step is one iteration: prompts × people × completions are sampled, rewarded, and learnt from for `algorithm.epochs`
passes over `algorithm.minibatches` parts. `docs/rl.md` has the equation behind every key.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from rewards.basis.belief import Belief
from rewards.basis.rails import stated
from rewards.files import JSONObject
from rlhf.models.conditioner_kinds import ConditionerConfig
from rlhf.objectives.advantages import GRPOAlgorithmConfig, PPOAlgorithmConfig
from rlhf.objectives.kl_control import KLConfig
from rlhf.phi.columns.config import ColumnConfig
from rlhf.phi.reward import HostConfig
from rlhf.policy.conditioning import RailConfig, UsersMixConfig
from rlhf.policy.rails import RailsConfig
from rlhf.run.config.common import DataConfig, MeshConfig, RunConfig, Track
from rlhf.run.config.unread import Unread
from rlhf.run.record import record
from rlhf.train.config import (
    KEEP_BEST,
    EvaluateEvery,
    EvaluateShare,
    MaxSkips,
    OnNonfinite,
    PolicyModelConfig,
    TuneConfig,
    check_base,
    check_best,
    check_conditioner,
    check_length,
    unread_evaluation,
    unread_skips,
)
from rlhf.train.guardrails.config import GuardrailsConfig
from rlhf.train.hints.config import HintsConfig
from rlhf.train.optim import OptimizerConfig
from rlhf.train.rl.critic import CriticConfig
from rlhf.train.rl.settings import Algorithm, RLSettings, RolloutConfig, check_algorithm

Coefficient = Annotated[float, Field(ge=-1e6, le=1e6)]


@record
class PromptDataConfig(DataConfig):
    """Prompts: the distinct ones of a preference file, or rows of `prompt` with any other columns."""

    too_long: Literal["error", "drop"] = Field(
        default="error",
        description="What becomes of prompts above rollout.max_prompt_tokens: the run stops and names the row, or "
        "they are left out and counted.",
    )


@record
class PopulationConfig:
    """N(mean, sd²) over coefficients of `columns`, for runs without a fitted reward run.

    Attributes:
      rails: which of them may be personal: `axes`, `half_spaces`, `trust_nats` (docs/guardrails.md); {} for all.
    """

    mean: tuple[Coefficient, ...] = Field(
        min_length=1,
        description="μ: the average person's coefficient of each column, in nats a standard deviation.",
    )
    sd: tuple[Annotated[float, Field(ge=0, le=1e6)], ...] = Field(
        min_length=1, description="How far people differ: standard deviation of each column's coefficient."
    )
    standardise: bool = Field(
        default=True,
        description="Divide each column by its standard deviation (within prompts) over samples of π_ref, once. "
        "false: coefficients are in the columns' own units.",
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="Samples of π_ref (JSON lines of prompt, completion); null: they are drawn at the start.",
    )
    prompts: int = Field(
        default=32, ge=1, le=100_000, description="Prompts for which samples of π_ref are drawn."
    )
    completions: int = Field(default=8, ge=2, le=10_000, description="Samples of π_ref drawn for each.")
    rails: JSONObject = dataclasses.field(default_factory=dict, hash=False)

    @property
    def prior(self) -> Belief:
        """The population as a belief about anybody."""
        return Belief.from_cov(
            np.array(self.mean, np.float32), np.diag(np.square(np.array(self.sd, np.float32)))
        )

    def unread(self) -> Iterator[Unread]:
        if not self.standardise:
            keys = ["reference", "prompts", "completions"]
            yield Unread(keys, "standardise", "population.standardise false")
        elif self.reference is not None:
            yield Unread(["prompts", "completions"], "reference", "population.reference given")

    @model_validator(mode="after")
    def _one_a_column(self):
        if len(self.mean) != len(self.sd):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and sd {len(self.sd)}; give one a column in both"
            )
        if not all(value > 0 for value in self.sd):
            raise ValueError(
                f"sd {list(self.sd)}: every number must be above 0; a column about which people agree gets a small one"
            )
        return self


@record
class RLTrainConfig:
    steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Iterations: sample, reward, learn; null where train.epochs says how long.",
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Passes over the prompts instead of steps, rounded up to whole steps.",
    )
    log_every: int = Field(default=1, ge=1, le=1_000_000_000, description="Iterations between metric lines.")
    checkpoint_every: int = Field(
        default=50,
        ge=1,
        le=1_000_000_000,
        description="Iterations between checkpoints; one is always written at the end.",
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        le=1_000_000_000,
        description="Newest checkpoints kept; 2 leaves one to fall back on.",
    )
    samples_every: int = Field(
        default=10,
        ge=0,
        le=1_000_000_000,
        description="Iterations between entries of samples.jsonl, which the first and the last have, too; 0 means none.",
    )
    sample_rows: int = Field(
        default=4, ge=1, le=100_000, description="Completions written each time, of different groups."
    )
    on_nonfinite: OnNonfinite = "stop"
    max_skips: MaxSkips = 3
    evaluate_every: EvaluateEvery = None
    evaluate_share: EvaluateShare = 0.1
    evaluate_greedy: bool = Field(
        default=False,
        description="Held-out prompts are answered by the likeliest tokens instead of samples as in training.",
    )
    keep_best: Literal["eval/reward"] | None = Field(default=None, description=KEEP_BEST)

    def unread(self) -> Iterator[Unread]:
        if not self.samples_every:
            yield Unread(["sample_rows"], "samples_every", "train.samples_every 0")
        yield from unread_evaluation(self.evaluate_every, ["evaluate_share", "evaluate_greedy"])
        yield from unread_skips(self.on_nonfinite)

    @model_validator(mode="after")
    def _one_length(self):
        check_length(self.steps, self.epochs)
        check_best(self.keep_best, self.evaluate_every)
        return self


@record
class RLConfig(RunConfig):
    """What both trainers take."""

    data: PromptDataConfig = Field(description="Where prompts come from.")
    model: PolicyModelConfig = Field(description="Model that is tuned; at the same time π_ref.")
    rewards: str | None = Field(
        default=None, min_length=1, description="Directory of a reward run; null with columns."
    )
    columns: tuple[ColumnConfig, ...] = Field(
        default=(), description="Rewards without a reward run, one basis output each: a list of sections."
    )
    population: PopulationConfig | None = Field(
        default=None,
        description="Whose coefficients the columns get; null: one policy for all, rewards as they are.",
    )
    weights: tuple[Coefficient, ...] | None = Field(
        default=None, description="Coefficients of the columns where there are no people; null means 1 each."
    )
    rollout: RolloutConfig = Field(description="What an iteration samples.")
    kl: KLConfig = Field(description="The price of leaving π_ref.")
    tune: TuneConfig = Field(
        default=TuneConfig(), description="Which parameters are trained besides the conditioner."
    )
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule, over optimiser steps.")
    train: RLTrainConfig = Field(description="Length, checkpoints, samples.")
    rail: RailConfig = Field(default=RailConfig(), description="The aggregate-prior term.")
    rails: RailsConfig = Field(
        default=RailsConfig(), description="What may be personal: the rails of the reward run."
    )
    conditioner: ConditionerConfig = Field(
        default=ConditionerConfig(), description="How coefficients change the weights."
    )
    users: UsersMixConfig = Field(default=UsersMixConfig(), description="Whose coefficients a group gets.")
    host: HostConfig = Field(default=HostConfig(), description="Rewards outside the compiled program.")
    mesh: MeshConfig = Field(default=MeshConfig(), description="How the devices share the work.")
    track: Track = ("tensorboard",)
    guardrails: GuardrailsConfig | None = Field(
        default=None,
        description="What is not for sale in training, whatever the coefficients say; null: nothing.",
    )
    hints: HintsConfig | None = Field(
        default=None, description="Hints that people gave, learned from beside the rewards; null: none."
    )

    @property
    def rows(self) -> int:
        """B, completions of an iteration."""
        rollout = self.rollout
        return rollout.prompts_per_step * rollout.users_per_prompt * rollout.completions

    @property
    def personal(self) -> bool:
        """Whether there are people whose coefficients condition the policy."""
        return self.rewards is not None or self.population is not None

    def unread(self) -> Iterator[Unread]:
        if not self.personal:
            yield Unread(
                ["conditioner", "users", "rails"],
                "population",
                "columns without a population, one policy for all",
            )

    @model_validator(mode="after")
    def _consistent(self):
        _check_rewards(self)
        _check_hints(self)
        _check_guardrails(self)
        check_base(self.model, self.tune)
        if self.personal:
            check_conditioner(self.conditioner, self.model)
        return self


@record
class PPOConfig(RLConfig):
    """`chorus train ppo`: PPO on a vector reward with a vector critic, one policy for all people."""

    algorithm: PPOAlgorithmConfig = Field(default=PPOAlgorithmConfig(), description="Advantages and updates.")
    critic: CriticConfig = Field(default=CriticConfig(), description="The value model.")

    @model_validator(mode="after")
    def _critic(self):
        _check_sizes(self, self.algorithm)
        check_algorithm(self.algorithm, self.critic, self.rollout, self.kl)
        if self.tune.mode == "full" and self.critic.backbone == "separate":
            raise ValueError(
                "critic.backbone separate needs tune.mode lora, over whose frozen base it has its adapters; choose shared"
            )
        if self.critic.from_rewards and self.rewards is None:
            raise ValueError(
                "critic.from_rewards true: columns say nothing of half a completion; give rewards fitted over hidden states "
                "or set it to false"
            )
        return self

    @property
    def settings(self) -> RLSettings:
        """The sections that compiled code reads."""
        return _settings(self, self.algorithm, self.critic)


@record
class GRPOConfig(RLConfig):
    """`chorus train grpo`: critic-free estimators (centred, RLOO, GRPO, REINFORCE++, GDPO) on a vector reward."""

    algorithm: GRPOAlgorithmConfig = Field(
        default=GRPOAlgorithmConfig(), description="Advantages and updates."
    )

    @model_validator(mode="after")
    def _groups(self):
        _check_sizes(self, self.algorithm)
        if self.algorithm.relabel and not self.personal:
            raise ValueError("algorithm.relabel needs people; give rewards or a population, or set it to 0")
        check_algorithm(self.algorithm, None, self.rollout, self.kl)
        if self.algorithm.relabel and self.guardrails is not None:
            raise ValueError(
                f"algorithm.relabel {self.algorithm.relabel}: guardrails do not reach completions that are relabelled for "
                "other people; set relabel to 0 or remove guardrails"
            )
        return self

    @property
    def settings(self) -> RLSettings:
        """The sections that compiled code reads."""
        return _settings(self, self.algorithm, None)


def _settings(config: RLConfig, algorithm: Algorithm, critic: CriticConfig | None) -> RLSettings:
    assert config.train.steps is not None, "the length is settled"
    return RLSettings(
        algorithm=algorithm,
        critic=critic,
        rollout=config.rollout,
        kl=config.kl,
        rail=config.rail,
        guardrails=config.guardrails,
        optimizer=config.optimizer,
        num_steps=config.train.steps * algorithm.epochs * algorithm.minibatches,
    )


def _check_rewards(config: RLConfig) -> None:
    """Exactly one source of rewards, and numbers for each of its columns."""
    names = [column.name for column in config.columns]
    if config.rewards is None and not names:
        raise ValueError(
            "rewards is required: the directory of a reward run, or columns with reward functions"
        )
    if config.rewards is not None and names:
        raise ValueError("rewards and columns are both given; the reward run has its own columns, remove one")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two columns are called {name!r}; rename one")
    for column in config.columns:
        if column.gate is not None:
            raise ValueError(
                f"column {column.name!r}: gate is for encoder.columns; training has no gates, remove it"
            )
    if config.population is not None:
        if not names:
            raise ValueError("population is for columns; a reward run has its own, remove population")
        if config.weights is not None:
            raise ValueError("weights are for one policy for all; with a population remove weights")
        if len(config.population.mean) != len(names):
            raise ValueError(
                f"population.mean has {len(config.population.mean)} numbers for {len(names)} columns "
                f"({', '.join(names)}); give one a column"
            )
        if config.population.rails:
            stated(config.population.rails, names, "", "population.rails")
    elif config.rail.eta > 0 and names:
        raise ValueError("rail.eta needs people; give a population or set rail.eta to 0")
    if config.weights is not None and len(config.weights) != len(names):
        raise ValueError(
            f"weights has {len(config.weights)} numbers for {len(names)} columns ({', '.join(names) or 'none'}); "
            "give one a column"
        )


def _check_sizes(config: RLConfig, algorithm: Algorithm) -> None:
    rows = config.rows
    if rows % algorithm.minibatches:
        rollout = config.rollout
        raise ValueError(
            f"algorithm.minibatches {algorithm.minibatches} does not divide the {rows} rows of an iteration "
            f"({rollout.prompts_per_step} prompts × {rollout.users_per_prompt} people × {rollout.completions} "
            "completions); choose a divisor"
        )
    if config.train.steps is None:
        return
    updates = config.train.steps * algorithm.epochs * algorithm.minibatches
    if config.optimizer.warmup_steps >= updates:
        raise ValueError(
            f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be smaller than the {updates} optimiser "
            "steps of the run"
        )


def _check_hints(config: RLConfig) -> None:
    """Hints need somebody whose they are, and a conditioner that is nothing at z = 0, through which they are learned."""
    if config.hints is None:
        return
    if config.rewards is None:
        raise ValueError(
            "hints need people who are known by name; give rewards (a run with a population writes a reward run to "
            "OUTPUT/rewards: ask people there, then train with rewards: OUTPUT/rewards) or remove hints"
        )
    if config.conditioner.kind == "text":
        raise ValueError(
            "hints need a conditioner with weights of its own, and conditioner.kind text has none; choose another kind "
            "or remove hints"
        )


def _check_guardrails(config: RLConfig) -> None:
    """Rails that compare people need people, and several for each prompt where they compare them on one."""
    guard = config.guardrails
    if guard is None:
        return
    if guard.of_people and not config.personal:
        raise ValueError(
            f"guardrails.{guard.of_people[0]}: compares people, and there is one policy for all; give rewards or a "
            "population, or remove it"
        )
    if guard.truth is not None and config.rollout.users_per_prompt < 2:
        raise ValueError(
            f"guardrails.truth: compares people on the same prompt, and rollout.users_per_prompt is "
            f"{config.rollout.users_per_prompt}; give at least 2"
        )
    if guard.checks and config.rollout.completions < 2:
        raise ValueError(
            f"guardrails.checks: compare the completions of one prompt and person, and rollout.completions is "
            f"{config.rollout.completions}; give at least 2"
        )
