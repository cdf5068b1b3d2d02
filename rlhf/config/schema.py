"""What every configuration may hold. Frozen, hashable, nothing unknown accepted.

Each field says in `description` what it does, its unit and what 0 or null means; `chorus config describe KIND`
prints exactly these. Lists are tuples so that a configuration can be a static argument of a compiled function.
A value that has no sensible default (learning rate, number of steps, paths) is required rather than guessed.
"""

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from rewards.fit import FitConfig

_FROZEN: dict[str, Any] = dict(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)
)
_SEED = "Seed of everything random in the run: initialisation, data order, sampling."
_OUTPUT = "Run directory to create; the same command again resumes what is there."
_DTYPE = "Type of weights and activations; sums and losses are float32 in either case."
DType = Literal["float32", "bfloat16"]


@dataclass(**_FROZEN)
class DataConfig:
    path: str = Field(
        min_length=1, description="Preference data: a .jsonl[.gz] or .parquet file, hf:NAME[/CONFIG], tfds:NAME or tfds:DIRECTORY."
    )
    split: str = Field("train", min_length=1, description="Split to read; a local file has only train (all of it).")


@dataclass(**_FROZEN)
class PeopleDataConfig(DataConfig):
    """Data whose people are divided into training and held-out people."""

    held_out_people: float = Field(
        0.2, gt=0, lt=1, description="Share of people never used in fitting; they play the new users."
    )
    split_seed: int = Field(0, ge=0, description="Seed of the division of people, apart from `seed` so that it can stay fixed.")
    last_choices: int = Field(
        3, ge=1, description="Each held-out person's last choices, kept for testing; earlier ones may be asked as questions."
    )


@dataclass(**_FROZEN)
class NameConfig:
    name: str = Field(min_length=1, description="Short name (smollm2-135m), local directory, .gguf file or hub id of the language model.")


# --- Rewards -------------------------------------------------------------------------------------------------------


@dataclass(**_FROZEN)
class EncoderModelConfig:
    name: str | None = Field(
        None, min_length=1, description="Language model whose hidden states embed the completions; null with encoder.kind precomputed."
    )


@dataclass(**_FROZEN)
class EncoderConfig:
    kind: Literal["lm", "precomputed"] = Field(
        "lm", description="lm: hidden states of model.name; precomputed: chosen_features/rejected_features of the data."
    )
    layer: int = Field(-1, description="Layer whose output is read; negative counts from the end, 0 is the token embedding.")
    pool: Literal["mean", "last"] = Field("mean", description="Mean over the completion's tokens, or its last token.")


@dataclass(**_FROZEN)
class RewardEvaluationConfig:
    counts: tuple[int, ...] = Field(
        (0, 1, 2, 3, 5, 10, 20), min_length=1, description="Numbers of answers at which held-out people are predicted."
    )
    seeds: int = Field(5, ge=1, description="Repetitions with other random question orders; intervals are over people.")

    @model_validator(mode="after")
    def _ascending(self):
        if any(count < 0 for count in self.counts) or list(self.counts) != sorted(set(self.counts)):
            raise ValueError("counts must be distinct, ascending and not negative, for example [0, 3, 10]")
        return self


@dataclass(**_FROZEN)
class RewardsConfig:
    """`chorus rewards fit|evaluate`: preferences → basis, gauge, prior, users."""

    seed: int = Field(ge=0, description=_SEED)
    output_dir: str = Field(min_length=1, description=_OUTPUT)
    data: PeopleDataConfig = Field(description="Preferences and who is held out.")
    model: EncoderModelConfig = Field(EncoderModelConfig(), description="Language model behind the encoder.")
    encoder: EncoderConfig = Field(EncoderConfig(), description="How a completion becomes a vector.")
    fit: FitConfig = Field(default_factory=FitConfig, description="Joint fit of basis and coefficients.")
    evaluation: RewardEvaluationConfig = Field(RewardEvaluationConfig(), description="Replay of held-out people.")

    @model_validator(mode="after")
    def _model_for_lm(self):
        if self.encoder.kind == "lm" and self.model.name is None:
            raise ValueError("model.name is required when encoder.kind is lm; name a model or set encoder.kind=precomputed")
        return self


# --- Training ------------------------------------------------------------------------------------------------------


@dataclass(**_FROZEN)
class ModelConfig(NameConfig):
    dtype: DType = Field("float32", description=_DTYPE)
    adapter_layers: int | None = Field(
        None, ge=1, description="Only the top so many layers carry adapters (the rest may be cached); null means all."
    )
    remat: bool = Field(False, description="Recompute activations in the backward pass: less memory, about a third slower.")


@dataclass(**_FROZEN)
class TuneConfig:
    mode: Literal["lora", "full"] = Field("lora", description="Train low-rank adapters, or all weights.")
    lora_rank: int = Field(16, ge=1, description="Rank of each adapter (lora only).")
    lora_alpha: float = Field(32.0, gt=0, description="Adapters are scaled by lora_alpha / lora_rank (lora only).")


@dataclass(**_FROZEN)
class OptimizerConfig:
    """AdamW with warm-up and clipping by the global norm."""

    learning_rate: float = Field(gt=0, description="Peak learning rate; 1e-4 is usual for lora, 1e-5 for full.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="Course after warm-up: constant, or linear/cosine to zero at the last step."
    )
    warmup_steps: int = Field(0, ge=0, description="Optimiser steps of linear warm-up from zero; 0 means none.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay; 0 means none.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients with a larger global norm are scaled down to it.")


@dataclass(**_FROZEN)
class TrainConfig:
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch_rows: int = Field(8, ge=1, description="Packed rows in one forward pass.")
    accumulation_steps: int = Field(1, ge=1, description="Forward passes whose gradients make one optimiser step.")
    row_length: int = Field(512, ge=8, description="Tokens in a packed row; an example that does not fit is an error.")
    log_every: int = Field(10, ge=1, description="Steps between metric lines.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints; one is always written at the end.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept; 2 leaves one to fall back on.")


def _check_schedule(config: Any) -> None:
    if config.optimizer.warmup_steps >= config.train.steps:
        raise ValueError(
            f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be smaller than train.steps ({config.train.steps})"
        )


@dataclass(**_FROZEN)
class SFTConfig:
    """`chorus train sft`: supervised start on completions; its result is π_ref of later runs."""

    seed: int = Field(ge=0, description=_SEED)
    output_dir: str = Field(min_length=1, description=_OUTPUT)
    data: DataConfig = Field(description="Where prompts and completions come from.")
    model: ModelConfig = Field(description="Model that is tuned.")
    tune: TuneConfig = Field(TuneConfig(), description="Which parameters are trained.")
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: TrainConfig = Field(description="Length, batches, checkpoints.")
    completions: Literal["chosen", "all"] = Field(
        "chosen", description="Learn the preferred completions, or every distinct one (a start without taste)."
    )

    @model_validator(mode="after")
    def _consistent(self):
        _check_schedule(self)
        return self


@dataclass(**_FROZEN)
class LossConfig:
    kind: Literal["soft", "regression", "observed", "dpo", "ipo", "cdpo", "simpo"] = Field(
        "soft",
        description="soft: target σ(w·Δφ); regression: (h − w·Δφ)²; observed: the person's own label; "
        "dpo, ipo, cdpo, simpo: one policy for all, without users.",
    )
    dpo_beta: float = Field(0.1, gt=0, description="Temperature β: h = β · (log-ratio margin against the reference).")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels (observed, cdpo); 0 means none."
    )
    simpo_gamma: float = Field(0.5, ge=0, description="Target margin γ in reward units (simpo only).")
    nll_coef: float = Field(
        0.0, ge=0, description="Weight of −Σ p log π over the row's completions; keeps probability on them, 0 means none."
    )
    length_normalise: bool = Field(False, description="Divide log-probs by the completion's length; simpo always does.")


@dataclass(**_FROZEN)
class RailConfig:
    eta: float = Field(
        0.0, ge=0, description="Weight η of KL(π‖π_agg): coefficients shrink to (βw + ημ)/(β+η); 0 means no rail."
    )


@dataclass(**_FROZEN)
class ConditionerConfig:
    rank: int = Field(4, ge=1, description="Rank of each axis's direction: ΔW = Σ_k z_k B_k A_k with A_k, B_k of this rank.")


@dataclass(**_FROZEN)
class UsersMixConfig:
    """Whose coefficients a training row gets. The four shares sum to 1."""

    posterior: float = Field(0.5, ge=0, le=1, description="Share drawn from the posteriors of training people.")
    prior: float = Field(0.3, ge=0, le=1, description="Share drawn from the prior N(μ, Σ).")
    extremes: float = Field(0.1, ge=0, le=1, description="Share at μ ± extreme_sd standard deviations along one axis.")
    generic: float = Field(0.1, ge=0, le=1, description="Share at μ itself, the aggregate user.")
    extreme_sd: float = Field(2.0, gt=0, description="Distance of the extremes from μ, in prior standard deviations.")

    @model_validator(mode="after")
    def _shares(self):
        total = self.posterior + self.prior + self.extremes + self.generic
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"posterior + prior + extremes + generic must be 1, not {total:g}")
        return self


@dataclass(**_FROZEN)
class GroupsConfig:
    completions: int | None = Field(
        2, ge=2, description="Completions of one prompt in a packed row; 2 is the ordinary pair, null all of them."
    )


@dataclass(**_FROZEN)
class DPOConfig:
    """`chorus train dpo`: one policy conditioned on coefficients, or a plain DPO-family policy."""

    seed: int = Field(ge=0, description=_SEED)
    output_dir: str = Field(min_length=1, description=_OUTPUT)
    data: DataConfig = Field(description="Where pairs come from.")
    model: ModelConfig = Field(description="Model that is tuned; at the same time π_ref.")
    rewards: str | None = Field(
        None, min_length=1, description="Directory of a reward run; null only for losses without users."
    )
    tune: TuneConfig = Field(TuneConfig(), description="Which parameters are trained besides the conditioner.")
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: TrainConfig = Field(description="Length, batches, checkpoints.")
    loss: LossConfig = Field(LossConfig(), description="Which member of the DPO family.")
    rail: RailConfig = Field(RailConfig(), description="The aggregate-prior term.")
    conditioner: ConditionerConfig = Field(ConditionerConfig(), description="How coefficients change the weights.")
    users: UsersMixConfig = Field(UsersMixConfig(), description="Whose coefficients training rows get.")
    groups: GroupsConfig = Field(GroupsConfig(), description="How completions of one prompt are packed.")

    @model_validator(mode="after")
    def _consistent(self):
        _check_schedule(self)
        if self.loss.kind in ("soft", "regression", "observed") and self.rewards is None:
            raise ValueError(
                f"rewards is required for loss.kind {self.loss.kind}; give a reward run or choose dpo, ipo, cdpo or simpo"
            )
        if self.loss.kind == "cdpo" and self.loss.label_smoothing == 0:
            raise ValueError("loss.label_smoothing must be above 0 for loss.kind cdpo; 0 would be plain dpo")
        return self


# --- Evaluation ----------------------------------------------------------------------------------------------------


@dataclass(**_FROZEN)
class EvaluateUsersConfig:
    count: int | None = Field(None, ge=2, description="Held-out people evaluated, the first in split order; null means all.")
    answers: int = Field(10, ge=0, description="Answers from which each person's coefficients are estimated; 0 is the prior.")


@dataclass(**_FROZEN)
class EvaluateSamplingConfig:
    num_samples: int = Field(8, ge=1, description="Answers sampled for each person and prompt.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")


@dataclass(**_FROZEN)
class EvaluateConfig:
    """`chorus evaluate`: the U×U matrix, swap, KL, against π_ref and π_agg."""

    seed: int = Field(ge=0, description=_SEED)
    output_dir: str = Field(min_length=1, description=_OUTPUT)
    data: PeopleDataConfig = Field(description="Preferences of the people evaluated; divided as in the reward run.")
    model: NameConfig = Field(description="Model the policy was trained from (π_ref).")
    policy: str = Field(min_length=1, description="Directory of the policy run.")
    rewards: str = Field(min_length=1, description="Directory of the reward run.")
    users: EvaluateUsersConfig = Field(EvaluateUsersConfig(), description="Who is evaluated.")
    sampling: EvaluateSamplingConfig = Field(EvaluateSamplingConfig(), description="How answers are drawn.")
    enumerate: bool = Field(
        True, description="Treat the data's distinct completions as the whole answer space and compute expectations exactly."
    )
