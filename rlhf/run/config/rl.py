"""The configurations of `chorus train ppo` and `chorus train grpo`; shared sections are in `parts`.

A step is one iteration: prompts × people × completions are sampled, rewarded, and learnt from for `algorithm.epochs`
passes over `algorithm.minibatches` parts. `docs/rl.md` has the equation behind every key.
"""

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rlhf.run.config.columns import ColumnConfig
from rlhf.run.config.parts import (
    FROZEN,
    ConditionerConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RailConfig,
    TuneConfig,
    UsersMixConfig,
    check_conditioner,
)
from rlhf.run.config.rl_hints import HintsConfig, check_hints
from rlhf.run.config.schema import RunConfig


@dataclass(**FROZEN)
class PromptDataConfig(DataConfig):
    """Prompts: the distinct ones of a preference file, or rows of `prompt` with any other columns."""

    too_long: Literal["error", "drop"] = Field(
        "error",
        description="What becomes of prompts above rollout.max_prompt_tokens: the run stops and names the row, or "
        "they are left out and counted.",
    )


@dataclass(**FROZEN)
class RolloutConfig:
    """What one iteration samples: prompts × people × completions rows."""

    prompts_per_step: int = Field(8, ge=1, description="Prompts in an iteration.")
    users_per_prompt: int = Field(
        1, ge=1, description="People drawn for each prompt; each gets completions of their own."
    )
    completions: int = Field(
        4, ge=1, description="Completions of one prompt for one person: the group that is centred together."
    )
    max_prompt_tokens: int = Field(512, ge=1, description="Longest prompt, in tokens; see data.too_long.")
    max_new_tokens: int = Field(ge=1, description="Longest completion, in tokens.")
    temperature: float = Field(
        1.0,
        gt=0,
        description="Sampling temperature; log-probs are those of the untempered policy, so other values than 1 "
        "bias the gradient.",
    )
    top_k: int = Field(0, ge=0, description="Sample from the k likeliest tokens; 0 means all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens of this mass; 1 means all."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens below this fraction of the likeliest's probability; 0 none."
    )


@dataclass(**FROZEN)
class AlgorithmConfig:
    """What PPO and the critic-free estimators share."""

    epochs: int = Field(1, ge=1, description="Passes over the rows of an iteration.")
    minibatches: int = Field(
        1, ge=1, description="Parts of a pass, one optimiser step each; must divide the rows of an iteration."
    )
    clip_low: float = Field(0.2, gt=0, description="ε below: the ratio π/π_old counts from 1 − clip_low on.")
    clip_high: float = Field(
        0.2, gt=0, description="ε above: the ratio π/π_old counts up to 1 + clip_high; DAPO takes 0.28."
    )
    entropy_coef: float = Field(
        0.0, ge=0, description="Weight of the entropy bonus in the loss, per nat a token; 0 means none."
    )
    missing_eos_penalty: float = Field(
        0.0,
        ge=0,
        description="Subtracted from the reward of a completion that did not end by itself; 0 means none.",
    )
    scaling: Literal["running", "batch", "none"] = Field(
        "running",
        description="What advantages are divided by: one running scale for the whole run; batch, the batch's own "
        "(whitening); or nothing. grpo, reinforce++ and gdpo have their own and are never divided again.",
    )
    scale_decay: float = Field(
        0.9, ge=0, lt=1, description="Share of the running scale that an iteration keeps (running only)."
    )


@dataclass(**FROZEN)
class GRPOAlgorithmConfig(AlgorithmConfig):
    kind: Literal["centred", "rloo", "grpo", "reinforce++", "gdpo"] = Field(
        "centred",
        description="Estimator of the advantage. centred, rloo and reinforce++ keep the strength of a taste; grpo "
        "and gdpo divide by a deviation of the group, which erases it where kl.place is loss.",
    )
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "constant",
        description="How token losses become one: mean over tokens (DAPO), over tokens and then completions (GRPO), "
        "or sum over max_new_tokens (Dr.GRPO; no preference for a length).",
    )
    relabel: int = Field(
        0,
        ge=0,
        description="Further people for whom every group of completions is learned from once more, with truncated "
        "importance weights (centred and rloo with kl.place reward); 0 means none.",
    )
    relabel_limit: float = Field(
        1.0,
        gt=0,
        description="Largest importance weight π(y|x, other)/π(y|x, own) of a relabelled completion.",
    )


@dataclass(**FROZEN)
class PPOAlgorithmConfig(AlgorithmConfig):
    aggregation: Literal["token", "sequence", "constant"] = Field(
        "token", description="How token losses become one: see train grpo."
    )
    discount: float = Field(1.0, gt=0, le=1, description="γ, discount a token.")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="λ of generalised advantages: 1 is Monte Carlo, 0 one step."
    )
    centre: bool = Field(
        True,
        description="Subtract the mean advantage of the (prompt, person) group; needs two completions or more.",
    )


@dataclass(**FROZEN)
class CriticConfig:
    """One value a basis output and one for the KL, seen with the person's coefficients."""

    backbone: Literal["shared", "separate"] = Field(
        "separate",
        description="separate: adapters of its own over the same frozen base, at first a copy of the policy's; "
        "shared: heads on the policy's hidden states.",
    )
    start: str | None = Field(
        None,
        min_length=1,
        description="Run of chorus train ppo with the same model, outputs and critic keys, whose critic this one starts "
        "from; null: zero heads over the policy's adapters.",
    )
    from_rewards: bool = Field(
        False,
        description="Values start as what the reward model says of the completion so far, and the heads learn the rest "
        "(rewards fitted over mean hidden states); false: they start at 0.",
    )
    stop_gradient: bool = Field(
        True, description="Keep the value loss out of the policy's adapters (shared only)."
    )
    hidden: int = Field(128, ge=1, description="Width of the heads' one hidden layer.")
    rate: float = Field(1.0, gt=0, description="Learning rate of the critic, as a multiple of the policy's.")
    coef: float = Field(0.5, gt=0, description="Weight of the value loss.")
    value_clip: float | None = Field(
        None,
        gt=0,
        description="Values may leave the old ones by so much before the loss turns worse; null means no clipping.",
    )


@dataclass(**FROZEN)
class KLConfig:
    coef: float = Field(
        gt=0, description="β, price of a nat of KL(π‖π_ref); the temperature of the optimum π_ref·exp(w·φ/β)."
    )
    controller: Literal["fixed", "adaptive", "target"] = Field(
        "fixed", description="fixed: β stays; adaptive (Ziegler et al.) and target: β seeks kl.target_nats."
    )
    target_nats: float = Field(
        6.0, gt=0, description="KL a completion that β seeks (adaptive and target only)."
    )
    horizon: float = Field(
        10_000.0, gt=0, description="Completions over which an adaptive β reacts (adaptive only)."
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1",
        description="Estimate of the KL at a token: x, x²/2 or e^(−x) − 1 + x, x = log π − log π_ref. k1 belongs in "
        "the reward (unbiased), k2 in the loss (k1 there has no gradient on average, k3 that of the other KL).",
    )
    place: Literal["reward", "loss"] = Field(
        "reward", description="reward: the KL is the last reward channel; loss: a term of the loss."
    )
    stop_nats: float | None = Field(
        None,
        gt=0,
        description="KL(π_old‖π) a token above which the rest of the iteration's updates are left out; null: never.",
    )

    @model_validator(mode="after")
    def _estimator_of_its_place(self):
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator k1 in the loss has a gradient of mean zero; choose k2 or k3, or place reward"
            )
        return self


@dataclass(**FROZEN)
class PopulationConfig:
    """N(mean, sd²) over coefficients of `columns`, for runs without a fitted reward run."""

    mean: tuple[float, ...] = Field(
        min_length=1,
        description="μ: the average person's coefficient of each column, in nats a standard deviation.",
    )
    sd: tuple[float, ...] = Field(
        min_length=1, description="How far people differ: standard deviation of each column's coefficient."
    )
    standardise: bool = Field(
        True,
        description="Divide each column by its standard deviation (within prompts) over samples of π_ref, once. "
        "false: coefficients are in the columns' own units.",
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="Samples of π_ref (JSON lines of prompt, completion); null: they are drawn at the start.",
    )
    prompts: int = Field(32, ge=1, description="Prompts for which samples of π_ref are drawn.")
    completions: int = Field(8, ge=2, description="Samples of π_ref drawn for each.")

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


@dataclass(**FROZEN)
class HostConfig:
    """Rewards that are computed outside the compiled program: Python functions, models, judges."""

    parallel: int = Field(4, ge=1, le=256, description="Columns computed at a time.")
    timeout_seconds: float = Field(
        600.0, gt=0, description="Longest time one column may take for the completions of an iteration."
    )
    retries: int = Field(0, ge=0, description="Further tries after a column failed, with growing pauses.")


@dataclass(**FROZEN)
class RLTrainConfig:
    steps: int = Field(ge=1, description="Iterations: sample, reward, learn.")
    log_every: int = Field(1, ge=1, description="Iterations between metric lines.")
    checkpoint_every: int = Field(
        50, ge=1, description="Iterations between checkpoints; one is always written at the end."
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints kept; 2 leaves one to fall back on."
    )
    samples_every: int = Field(
        10, ge=0, description="Iterations between entries of samples.jsonl; 0 means none."
    )
    sample_rows: int = Field(4, ge=1, description="Completions written each time, of different groups.")


@dataclass(**FROZEN)
class RLConfig(RunConfig):
    """What both trainers take."""

    data: PromptDataConfig = Field(description="Where prompts come from.")
    model: ModelConfig = Field(description="Model that is tuned; at the same time π_ref.")
    rewards: str | None = Field(
        None, min_length=1, description="Directory of a reward run; null with columns."
    )
    columns: tuple[ColumnConfig, ...] = Field(
        (), description="Rewards without a reward run, one basis output each: a list of sections."
    )
    population: PopulationConfig | None = Field(
        None, description="Whose coefficients the columns get; null: one policy for all, rewards as they are."
    )
    weights: tuple[float, ...] | None = Field(
        None, description="Coefficients of the columns where there are no people; null means 1 each."
    )
    rollout: RolloutConfig = Field(description="What an iteration samples.")
    kl: KLConfig = Field(description="The price of leaving π_ref.")
    tune: TuneConfig = Field(
        TuneConfig(), description="Which parameters are trained besides the conditioner."
    )
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule, over optimiser steps.")
    train: RLTrainConfig = Field(description="Length, checkpoints, samples.")
    rail: RailConfig = Field(RailConfig(), description="The aggregate-prior term.")
    conditioner: ConditionerConfig = Field(
        ConditionerConfig(), description="How coefficients change the weights."
    )
    users: UsersMixConfig = Field(UsersMixConfig(), description="Whose coefficients a group gets.")
    host: HostConfig = Field(HostConfig(), description="Rewards outside the compiled program.")
    hints: HintsConfig | None = Field(
        None, description="Hints that people gave, learned from beside the rewards; null: none."
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

    @model_validator(mode="after")
    def _consistent(self):
        _check_rewards(self)
        _check_sizes(self)
        check_hints(self)
        if self.personal:
            check_conditioner(self.conditioner, self.model)
        return self


@dataclass(**FROZEN)
class PPOConfig(RLConfig):
    """`chorus train ppo`: PPO on a vector reward with a vector critic, one policy for all people."""

    algorithm: PPOAlgorithmConfig = Field(PPOAlgorithmConfig(), description="Advantages and updates.")
    critic: CriticConfig = Field(CriticConfig(), description="The value model.")

    @model_validator(mode="after")
    def _critic(self):
        if self.algorithm.centre and self.rollout.completions < 2:
            raise ValueError(
                f"rollout.completions {self.rollout.completions}: a group of one has no mean to subtract; give at least "
                "2 or set algorithm.centre to false"
            )
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


@dataclass(**FROZEN)
class GRPOConfig(RLConfig):
    """`chorus train grpo`: critic-free estimators (centred, RLOO, GRPO, REINFORCE++, GDPO) on a vector reward."""

    algorithm: GRPOAlgorithmConfig = Field(GRPOAlgorithmConfig(), description="Advantages and updates.")

    @model_validator(mode="after")
    def _groups(self):
        if self.rollout.completions < 2:
            raise ValueError(
                f"rollout.completions {self.rollout.completions}: algorithm.kind {self.algorithm.kind} compares the "
                "completions of one prompt and person; give at least 2, or use chorus train ppo"
            )
        if not self.algorithm.relabel:
            return self
        if not self.personal:
            raise ValueError("algorithm.relabel needs people; give rewards or a population, or set it to 0")
        if self.algorithm.kind not in ("centred", "rloo") or self.kl.place == "loss":
            raise ValueError(
                f"algorithm.relabel {self.algorithm.relabel} with algorithm.kind {self.algorithm.kind} and kl.place "
                f"{self.kl.place}: completions are weighed for centred and rloo with kl.place reward; change these or "
                "set relabel to 0"
            )
        return self


def _check_rewards(config: Any) -> None:
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
    elif config.rail.eta > 0 and names:
        raise ValueError("rail.eta needs people; give a population or set rail.eta to 0")
    if config.weights is not None and len(config.weights) != len(names):
        raise ValueError(
            f"weights has {len(config.weights)} numbers for {len(names)} columns ({', '.join(names) or 'none'}); "
            "give one a column"
        )


def _check_sizes(config: Any) -> None:
    rows, algorithm = config.rows, config.algorithm
    if rows % algorithm.minibatches:
        rollout = config.rollout
        raise ValueError(
            f"algorithm.minibatches {algorithm.minibatches} does not divide the {rows} rows of an iteration "
            f"({rollout.prompts_per_step} prompts × {rollout.users_per_prompt} people × {rollout.completions} "
            "completions); choose a divisor"
        )
    updates = config.train.steps * algorithm.epochs * algorithm.minibatches
    if config.optimizer.warmup_steps >= updates:
        raise ValueError(
            f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be smaller than the {updates} optimiser "
            "steps of the run"
        )
