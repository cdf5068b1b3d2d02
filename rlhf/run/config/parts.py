"""Sections of configurations. Frozen, hashable, nothing unknown accepted.

Each field says in `description` what it does, its unit and what 0 or null means; `chorus config describe`
prints exactly these. Lists are tuples so that a configuration can be a static argument of a jitted function.
A value that has no sensible default (learning rate, number of steps, paths) is required rather than guessed.
"""

import dataclasses
import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from rewards.basis.fit import FitConfig
from rlhf.run.config.columns import ColumnConfig

FROZEN: dict[str, Any] = dict(
    frozen=True,
    kw_only=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=True),
)
DTYPE_DOC = "Type of weights and activations; sums and losses are float32 in either case."
DType = Literal["float32", "bfloat16"]


@dataclass(**FROZEN)
class DataConfig:
    path: str = Field(
        min_length=1,
        description="A .jsonl[.gz] or .parquet file, a shipped set (electricity, train-trips), "
        "hf:NAME[/CONFIG], tfds:NAME or tfds:DIRECTORY.",
    )
    split: str = Field(
        "train", min_length=1, description="Split to read; a local file has only train (all of it)."
    )


@dataclass(**FROZEN)
class PeopleDataConfig(DataConfig):
    """Data whose people are divided into training and held-out people."""

    held_out_people: float = Field(
        0.2, gt=0, lt=1, description="Share of people never used in fitting; they play the new users."
    )
    split_seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of the division of people, apart from `seed` so that it can stay fixed.",
    )
    last_choices: int = Field(
        3,
        ge=1,
        description="Last choices of each held-out person, kept for testing; earlier ones may be asked.",
    )
    min_comparisons: int = Field(
        1, ge=1, description="People with fewer comparisons are left out, from fitting and from testing."
    )
    max_people: int | None = Field(
        None,
        ge=2,
        description="Keep only so many of those people, drawn by a hash of their names; null keeps all.",
    )


@dataclass(**FROZEN)
class NameConfig:
    name: str = Field(
        min_length=1,
        description="Short name (smollm2-135m), local directory, .gguf file or hub id of the language model.",
    )


@dataclass(**FROZEN)
class EncoderModelConfig:
    name: str | None = Field(
        None,
        min_length=1,
        description="Language model whose hidden states embed completions; null unless encoder.kind is lm.",
    )


@dataclass(**FROZEN)
class EncoderConfig:
    kind: Literal["lm", "precomputed", "attributes", "columns"] = Field(
        "lm",
        description="lm: hidden states of model.name; precomputed: chosen_features, rejected_features; "
        "attributes: the numbers of the attributes column; columns: the rewards of encoder.columns.",
    )
    layer: int = Field(
        -1, description="Layer whose output is read; negative counts from the end, 0 is the token embedding."
    )
    pool: Literal["mean", "last"] = Field(
        "mean", description="Mean over the completion's tokens, or its last token."
    )
    columns: tuple[ColumnConfig, ...] = Field(
        (), description="Off-the-shelf rewards, a list of sections; for kind columns only."
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="Samples of π_ref (JSON lines of prompt, completion) over which fit.model columns standardises; "
        "null: the completions of data.path.",
    )

    @model_validator(mode="after")
    def _columns_for_columns(self):
        if self.kind == "columns" and not self.columns:
            raise ValueError("columns is empty, which kind columns needs; name at least one column")
        if self.kind != "columns" and self.columns:
            raise ValueError(
                f"columns is for kind columns, not {self.kind}; set kind to columns or remove it"
            )
        if self.kind != "columns" and self.reference is not None:
            raise ValueError(f"reference is for kind columns, not {self.kind}; remove it")
        names = [column.name for column in self.columns]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise ValueError(f"two columns are called {repeated[0]!r}; rename one")
        return self


@dataclass(**FROZEN)
class RewardFitConfig(FitConfig):
    """The house model's settings, and which model is fitted at all.

    Attributes:
      settings: settings of a model other than house, by name; they override what is shared.
    """

    model: str = Field(
        "house",
        description="Reward model that is fitted. Another one than house shares num_basis, dims, whitening, lapse "
        "and seed (of a list the largest); what else it has stands in fit.settings.",
    )
    annotation: Literal["none", "mixture"] = Field(
        "none",
        description="mixture: estimate which answers are genuine, non-attitudes or made up by order and frame, and "
        "weight the fit by it (house model's margins; any model's fit); people's answers then lapse with 1 − π_G.",
    )
    settings: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @model_validator(mode="after")
    def _settings_of_the_right_model(self):
        if self.model == "house" and self.settings:
            raise ValueError(
                f"fit.settings holds {', '.join(self.settings)}, but fit.model is house, whose keys stand in "
                "fit itself; move them there"
            )
        return self

    def house(self) -> FitConfig:
        """The house model's part alone."""
        names = [field.name for field in dataclasses.fields(FitConfig)]
        return FitConfig(**{name: getattr(self, name) for name in names})


@dataclass(**FROZEN)
class RewardEvaluationConfig:
    """Replay of held-out people, and the comparison with other models.

    Attributes:
      settings: settings of compared models by name, such as {lore: {num_basis: 8}}; the one fitted has its own.
    """

    counts: tuple[int, ...] = Field(
        (0, 1, 2, 3, 5, 10, 20),
        min_length=1,
        description="Numbers of answers at which held-out people are predicted.",
    )
    seeds: int = Field(
        5, ge=1, description="Repetitions with other random question orders; intervals are over people."
    )
    models: Literal["all"] | tuple[str, ...] | None = Field(
        None,
        description="Models compared on the four cells: names, all, or null for the fitted one and aggregate; "
        "an empty list skips comparison and controls (house only).",
    )
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict, hash=False)
    controls: bool = Field(
        True,
        description="Fit every compared model again on identical people, where it must not win, and on planted "
        "tastes, where it must.",
    )
    held_out_prompts: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of prompts kept out of the comparison's fits for its unseen-prompt cells; 0 means none.",
    )
    distinct_texts: bool = Field(
        False,
        description="Each text is used once a person and the other comparisons are left out; for pairs that were made "
        "from ratings, which are fewer answers than pairs.",
    )

    @model_validator(mode="after")
    def _ascending(self):
        if any(count < 0 for count in self.counts) or list(self.counts) != sorted(set(self.counts)):
            raise ValueError("counts must be distinct, ascending and not negative, for example [0, 3, 10]")
        return self


@dataclass(**FROZEN)
class ModelConfig(NameConfig):
    dtype: DType = Field("float32", description=DTYPE_DOC)
    adapter_layers: int | None = Field(
        None,
        ge=1,
        description="Only the top so many layers carry adapters (the rest may be cached); null means all.",
    )
    remat: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third slower."
    )


@dataclass(**FROZEN)
class TuneConfig:
    mode: Literal["lora", "full"] = Field("lora", description="Train low-rank adapters, or all weights.")
    lora_rank: int = Field(16, ge=1, description="Rank of each adapter (lora only).")
    lora_alpha: float = Field(
        32.0, gt=0, description="Adapters are scaled by lora_alpha / lora_rank (lora only)."
    )


@dataclass(**FROZEN)
class OptimizerConfig:
    """AdamW with warm-up and clipping by the global norm."""

    learning_rate: float = Field(
        gt=0, description="Peak learning rate; 1e-4 is usual for lora, 1e-5 for full."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="Course after warm-up: constant, or linear/cosine to zero at the last step."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Optimiser steps of linear warm-up from zero; 0 means none."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay; 0 means none.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients with a larger global norm are scaled down to it."
    )


@dataclass(**FROZEN)
class TrainConfig:
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch_rows: int = Field(8, ge=1, description="Packed rows in one forward pass.")
    accumulation_steps: int = Field(
        1, ge=1, description="Forward passes whose gradients make one optimiser step."
    )
    log_every: int = Field(10, ge=1, description="Steps between metric lines.")
    checkpoint_every: int = Field(
        100, ge=1, description="Steps between checkpoints; one is always written at the end."
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints kept; 2 leaves one to fall back on."
    )


@dataclass(**FROZEN)
class SFTTrainConfig(TrainConfig):
    row_length: int = Field(
        512, ge=8, description="Tokens in a packed row of several examples; a longer example is an error."
    )


@dataclass(**FROZEN)
class LossConfig:
    kind: Literal["soft", "regression", "observed", "dpo", "ipo", "cdpo", "simpo"] = Field(
        "soft",
        description="soft: target σ(w·Δφ); regression: (h − w·Δφ)²; observed: the person's own label; "
        "dpo, ipo, cdpo, simpo: one policy for all, without users.",
    )
    dpo_beta: float = Field(
        0.1, gt=0, description="Temperature β: h = β · (log-ratio margin against the reference)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels (observed, cdpo); 0 means none."
    )
    annotation: Literal["none", "mixture"] = Field(
        "none",
        description="mixture: people's own labels count by how genuine they look (order, frame, repeats), with soft "
        "labels; needs `rewards`. Not for soft and regression, whose targets come from the coefficients.",
    )
    simpo_gamma: float = Field(0.5, ge=0, description="Target margin γ in reward units (simpo only).")
    length_normalise: bool = Field(
        False, description="Divide log-probs by the completion's length; simpo always does."
    )
    nll_coef: float = Field(
        0.0,
        ge=0,
        description="Weight of a supervised term on the row's completions, which keeps probability from "
        "draining out of both sides of a pair; 0 means none, 1 is usual.",
    )


@dataclass(**FROZEN)
class RailConfig:
    eta: float = Field(
        0.0,
        ge=0,
        description="Weight η of KL(π‖π_agg): coefficients shrink to (βw + ημ)/(β+η); 0 means no rail.",
    )


@dataclass(**FROZEN)
class ConditionerConfig:
    kind: Literal["low_rank", "film", "prefix", "logit_heads", "text"] = Field(
        "low_rank",
        description="How coefficients act: a low-rank change of every linear map, scale and shift of normed inputs, "
        "extra attention slots, heads that add to the logits, or words in front of the prompt.",
    )
    rank: int = Field(
        4,
        ge=1,
        description="Rank r of each axis's direction: ΔW = Σ_k z_k B_k A_k with A_k, B_k of this rank "
        "(low_rank, logit_heads).",
    )
    slots: int = Field(8, ge=1, description="Extra attention slots in every adapted layer (prefix only).")
    shift: bool = Field(
        True,
        description="Shift normed inputs as well as scale them; without, one person's policy can be exported "
        "(film only).",
    )

    @model_validator(mode="after")
    def _keys_of_the_kind(self):
        for key, kinds in (
            ("rank", ("low_rank", "logit_heads")),
            ("slots", ("prefix",)),
            ("shift", ("film",)),
        ):
            default = type(self).__dataclass_fields__[key].default.default
            if getattr(self, key) != default and self.kind not in kinds:
                raise ValueError(
                    f"{key} is for kind {' and '.join(kinds)}, not {self.kind}; remove it or change kind"
                )
        return self


def check_conditioner(conditioner: ConditionerConfig, model: ModelConfig) -> None:
    """Words in front of the prompt change every layer, so none may be computed once and cached."""
    if conditioner.kind == "text" and model.adapter_layers is not None:
        raise ValueError(
            f"model.adapter_layers is {model.adapter_layers}, but conditioner.kind text writes into the prompt, which "
            "every layer reads; set model.adapter_layers=null"
        )


@dataclass(**FROZEN)
class UsersMixConfig:
    """Whose coefficients a training row gets. The four shares sum to 1."""

    posterior: float = Field(
        0.5, ge=0, le=1, description="Share drawn from the posteriors of training people."
    )
    prior: float = Field(0.3, ge=0, le=1, description="Share drawn from the prior N(μ, Σ).")
    extremes: float = Field(
        0.1, ge=0, le=1, description="Share at μ ± extreme_sd standard deviations along one axis."
    )
    generic: float = Field(0.1, ge=0, le=1, description="Share at μ itself, the aggregate user.")
    extreme_sd: float = Field(
        2.0, gt=0, description="Distance of the extremes from μ, in prior standard deviations."
    )

    @model_validator(mode="after")
    def _shares(self):
        total = self.posterior + self.prior + self.extremes + self.generic
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"posterior + prior + extremes + generic must be 1, not {total:g}")
        return self


@dataclass(**FROZEN)
class GroupsConfig:
    completions: int | None = Field(
        2,
        ge=2,
        description="Completions of one prompt in a packed row; 2 is the ordinary pair, null all of them. "
        "Losses on people's own labels take these two only.",
    )


@dataclass(**FROZEN)
class EvaluateUsersConfig:
    count: int | None = Field(
        None, ge=2, description="Held-out people evaluated, the first in split order; null means all."
    )
    answers: int = Field(
        10, ge=0, description="Answers from which each person's coefficients are estimated; 0 is the prior."
    )


@dataclass(**FROZEN)
class EvaluateSamplingConfig:
    num_samples: int = Field(8, ge=1, description="Answers sampled for each person and prompt.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    max_new_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
