"""The configuration of every job: `rewards`, `sft`, `dpo`, `evaluate`; their sections are in `parts`."""

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rlhf.run.config.parts import (
    FROZEN,
    ConditionerConfig,
    DataConfig,
    EncoderConfig,
    EncoderModelConfig,
    EvaluateSamplingConfig,
    EvaluateUsersConfig,
    GroupsConfig,
    LossConfig,
    ModelConfig,
    NameConfig,
    OptimizerConfig,
    PeopleDataConfig,
    RailConfig,
    RewardEvaluationConfig,
    RewardFitConfig,
    SFTTrainConfig,
    TrainConfig,
    TuneConfig,
    UsersMixConfig,
    check_conditioner,
)


@dataclass(**FROZEN)
class RunConfig:
    """What every job has."""

    seed: int = Field(
        ge=0,
        lt=2**32,
        description="Seed of everything random in the run: initialisation, data order, sampling.",
    )
    output_dir: str = Field(
        min_length=1, description="Run directory to create; the same command again resumes what is there."
    )


@dataclass(**FROZEN)
class RewardsConfig(RunConfig):
    """`chorus rewards fit|evaluate`: preferences → basis, gauge, prior, users."""

    data: PeopleDataConfig = Field(description="Preferences and who is held out.")
    model: EncoderModelConfig = Field(EncoderModelConfig(), description="Language model behind the encoder.")
    encoder: EncoderConfig = Field(EncoderConfig(), description="How a completion becomes a vector.")
    fit: RewardFitConfig = Field(
        default_factory=RewardFitConfig, description="Joint fit of basis and coefficients."
    )
    evaluation: RewardEvaluationConfig = Field(
        RewardEvaluationConfig(), description="Replay of held-out people."
    )

    @model_validator(mode="after")
    def _model_for_lm(self):
        if self.encoder.kind == "lm" and self.model.name is None:
            raise ValueError(
                "model.name is required when encoder.kind is lm; name a model or set encoder.kind=precomputed, "
                "attributes or columns"
            )
        return self


def _check_schedule(config: Any) -> None:
    if config.optimizer.warmup_steps >= config.train.steps:
        raise ValueError(
            f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be smaller than "
            f"train.steps ({config.train.steps})"
        )


@dataclass(**FROZEN)
class SFTConfig(RunConfig):
    """`chorus train sft`: supervised start on completions; its result is π_ref of later runs."""

    data: DataConfig = Field(description="Where prompts and completions come from.")
    model: ModelConfig = Field(description="Model that is tuned.")
    tune: TuneConfig = Field(TuneConfig(), description="Which parameters are trained.")
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: SFTTrainConfig = Field(description="Length, batches, checkpoints.")
    completions: Literal["chosen", "all"] = Field(
        "chosen",
        description="Learn the preferred completions, or every distinct one (a start without taste).",
    )

    @model_validator(mode="after")
    def _consistent(self):
        _check_schedule(self)
        return self


@dataclass(**FROZEN)
class DPOConfig(RunConfig):
    """`chorus train dpo`: one policy conditioned on coefficients, or a plain DPO-family policy."""

    data: DataConfig = Field(description="Where pairs come from.")
    model: ModelConfig = Field(description="Model that is tuned; at the same time π_ref.")
    rewards: str | None = Field(
        None, min_length=1, description="Directory of a reward run; null only for losses without users."
    )
    tune: TuneConfig = Field(
        TuneConfig(), description="Which parameters are trained besides the conditioner."
    )
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: TrainConfig = Field(description="Length, batches, checkpoints.")
    loss: LossConfig = Field(LossConfig(), description="Which member of the DPO family.")
    rail: RailConfig = Field(RailConfig(), description="The aggregate-prior term.")
    conditioner: ConditionerConfig = Field(
        ConditionerConfig(), description="How coefficients act on the policy."
    )
    users: UsersMixConfig = Field(UsersMixConfig(), description="Whose coefficients training rows get.")
    groups: GroupsConfig = Field(GroupsConfig(), description="How completions of one prompt are packed.")

    @model_validator(mode="after")
    def _consistent(self):
        _check_schedule(self)
        check_conditioner(self.conditioner, self.model)
        if self.loss.kind in ("soft", "regression", "observed") and self.rewards is None:
            raise ValueError(
                f"rewards is required for loss.kind {self.loss.kind}; give a reward run or choose dpo, ipo, "
                "cdpo or simpo"
            )
        if self.loss.kind not in ("soft", "regression") and self.groups.completions not in (2, None):
            raise ValueError(
                f"groups.completions {self.groups.completions} is for loss.kind soft and regression, which compare "
                f"all completions of a row; with {self.loss.kind} choose 2 (one comparison a row) or null"
            )
        if self.loss.annotation == "mixture":
            if self.loss.kind in ("soft", "regression"):
                raise ValueError(
                    f"loss.annotation mixture weighs people's own labels, which loss.kind {self.loss.kind} does not "
                    "use; choose none, or observed, dpo, ipo, cdpo or simpo"
                )
            if self.rewards is None:
                raise ValueError(
                    "rewards is required for loss.annotation mixture: the coefficients say how likely a genuine "
                    "answer was; give a reward run or choose none"
                )
        if self.loss.kind == "cdpo" and self.loss.label_smoothing == 0:
            raise ValueError("loss.label_smoothing must be above 0 for loss.kind cdpo; 0 would be plain dpo")
        return self


@dataclass(**FROZEN)
class EvaluateConfig(RunConfig):
    """`chorus evaluate`: the U×U matrix, swap, KL, against π_ref and π_agg."""

    data: PeopleDataConfig = Field(
        description="Preferences of the people evaluated; divided as in the reward run."
    )
    model: NameConfig = Field(description="Model the policy was trained from (π_ref).")
    policy: str = Field(min_length=1, description="Directory of the policy run.")
    rewards: str = Field(min_length=1, description="Directory of the reward run.")
    users: EvaluateUsersConfig = Field(EvaluateUsersConfig(), description="Who is evaluated.")
    sampling: EvaluateSamplingConfig = Field(EvaluateSamplingConfig(), description="How answers are drawn.")
    enumerate: bool = Field(
        True,
        description="Take the data's distinct completions as the whole answer space: exact expectations.",
    )
