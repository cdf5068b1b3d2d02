"""The configurations of `chorus train sft` and `chorus train dpo`, and the sections that all trainers share.

The records of the algorithms stand beside their mathematics; here they are put together.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from rlhf.models.conditioner_kinds import ConditionerConfig
from rlhf.models.config import Kept
from rlhf.objectives.preference import PreferenceLossConfig
from rlhf.policy.conditioning import RailConfig, UsersMixConfig
from rlhf.policy.rails import RailsConfig
from rlhf.run.config.common import (
    DataConfig,
    ExampleDataConfig,
    MeshConfig,
    RunConfig,
    StreamedDataConfig,
    Track,
)
from rlhf.run.config.unread import Unread
from rlhf.run.record import record
from rlhf.train.guardrails.config import GuardrailsConfig
from rlhf.train.optim import OptimizerConfig

DType = Literal["float32", "bfloat16"]


@record
class NameConfig:
    name: str = Field(
        min_length=1,
        description="Short name (smollm2-135m), local directory, .gguf file or hub id of the language model.",
    )


@record
class PolicyModelConfig(NameConfig):
    dtype: DType = Field(
        default="float32",
        description="Type of weights and activations; sums and losses are float32 in either case.",
    )
    base: Kept | None = Field(
        default=None,
        description="How the frozen matrices of the layers are kept (tune.mode lora): float32, bfloat16, int8 (a scale a "
        "column) or nf4 (4 bits, a scale for 64 weights; QLoRA); null: as dtype. Embeddings, norms and head stay in dtype, "
        "each matrix is made whole where it is used, and export merges into the model as it is on disk, in float32.",
    )
    adapter_layers: int | None = Field(
        default=None,
        ge=1,
        le=1_000,
        description="Only the top so many layers carry adapters (the rest may be cached); null means all.",
    )
    remat: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third slower.",
    )


@record
class TuneConfig:
    mode: Literal["lora", "full"] = Field(
        default="lora", description="Train low-rank adapters, or all weights."
    )
    lora_rank: int = Field(default=16, ge=1, le=16_384, description="Rank of each adapter (lora only).")
    lora_alpha: float = Field(
        default=32.0, gt=0, le=1e6, description="Adapters are scaled by lora_alpha / lora_rank (lora only)."
    )

    def unread(self) -> Iterator[Unread]:
        if self.mode == "full":
            yield Unread(["lora_rank", "lora_alpha"], "mode", "tune.mode full")


EvaluateEvery = Annotated[
    int | None,
    Field(
        ge=1,
        le=1_000_000_000,
        description="Steps between measurements on what is held out (eval/… in metrics.jsonl), and one at the end; "
        "null holds nothing out.",
    ),
]
EvaluateShare = Annotated[
    float,
    Field(
        gt=0,
        lt=1,
        description="Share that is held out: of the people whose labels are learned from, else of the prompts, else of the "
        "rows; the first of which there are enough.",
    ),
]
OnNonfinite = Annotated[
    Literal["stop", "skip"],
    Field(
        description="What a step does whose loss, gradient or parameters are not finite: stop the run, or leave the state as "
        "it was and go on (which needs room for the trained state twice)."
    ),
]
MaxSkips = Annotated[
    int,
    Field(
        ge=1,
        le=1_000_000,
        description="Steps in a row that on_nonfinite skip leaves out; one more stops the run.",
    ),
]
KEEP_BEST = "The policy of the step where this was best is kept, not the last one; null keeps the last."


@record
class TrainConfig:
    steps: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Optimiser steps; null where train.epochs says how long.",
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Passes over the data instead of steps, rounded up to whole steps.",
    )
    batch_rows: int | None = Field(
        default=8,
        ge=1,
        le=1_000_000,
        description="Packed rows in one forward pass; null: 8 an optimiser step (fewer of few), in as few passes as "
        "memory allows.",
    )
    accumulation_steps: int = Field(
        default=1, ge=1, le=100_000, description="Forward passes whose gradients make one optimiser step."
    )
    log_every: int = Field(default=10, ge=1, le=1_000_000_000, description="Steps between metric lines.")
    checkpoint_every: int = Field(
        default=100,
        ge=1,
        le=1_000_000_000,
        description="Steps between checkpoints; one is always written at the end.",
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        le=1_000_000_000,
        description="Newest checkpoints kept; 2 leaves one to fall back on.",
    )
    on_nonfinite: OnNonfinite = "stop"
    max_skips: MaxSkips = 3
    evaluate_every: EvaluateEvery = None
    evaluate_share: EvaluateShare = 0.1
    keep_best: Literal["eval/loss/total", "eval/loss/pair", "eval/accuracy", "eval/reward"] | None = Field(
        default=None, description=KEEP_BEST
    )

    def unread(self) -> Iterator[Unread]:
        yield from unread_evaluation(self.evaluate_every, ["evaluate_share"])
        yield from unread_skips(self.on_nonfinite)

    @model_validator(mode="after")
    def _one_length(self):
        check_length(self.steps, self.epochs)
        check_best(self.keep_best, self.evaluate_every)
        if self.batch_rows is None and self.accumulation_steps != 1:
            raise ValueError("batch_rows null chooses accumulation_steps, too; remove it or give batch_rows")
        return self


def check_length(steps: int | None, epochs: float | None) -> None:
    """Refuse a run without a length, or with two."""
    if steps is None and epochs is None:
        raise ValueError("steps is required; give a number of steps, or epochs")
    if steps is not None and epochs is not None:
        raise ValueError(f"steps {steps} and epochs {epochs:g} are both given; remove one")


def unread_evaluation(every: int | None, keys: list[str]) -> Iterator[Unread]:
    """Keys that a run without evaluation does not read."""
    if every is None:
        yield Unread(keys, "evaluate_every", "train.evaluate_every null")


def unread_skips(on_nonfinite: str) -> Iterator[Unread]:
    """Keys that a run which stops does not read."""
    if on_nonfinite == "stop":
        yield Unread(["max_skips"], "on_nonfinite", "train.on_nonfinite stop")


def check_best(keep_best: str | None, every: int | None) -> None:
    """The best of what is never measured cannot be kept."""
    if keep_best is not None and every is None:
        raise ValueError(f"keep_best {keep_best} needs evaluate_every; give the steps between measurements")


@record
class PairTrainConfig(TrainConfig):
    length_buckets: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Lengths that rows are padded to, chosen from the data; above 1 a step visits rows of similar length, "
        "and each length is a program of its own. 1 pads all rows to the longest.",
    )


@record
class SFTTrainConfig(TrainConfig):
    row_length: int | None = Field(
        default=512,
        ge=8,
        le=1_000_000,
        description="Tokens in a packed row of several examples; a longer example is an error. null: 512, or the longest "
        "example.",
    )
    keep_best: Literal["eval/loss/total"] | None = Field(default=None, description=KEEP_BEST)


@record
class GroupsConfig:
    completions: int | None = Field(
        default=2,
        ge=2,
        le=1_024,
        description="Completions of one prompt in a packed row; 2 is the ordinary pair, null all of them. "
        "Losses on people's own labels take these two only.",
    )


def check_conditioner(conditioner: ConditionerConfig, model: PolicyModelConfig) -> None:
    """Words in front of the prompt change every layer, so none may be computed once and cached."""
    if conditioner.kind == "text" and model.adapter_layers is not None:
        raise ValueError(
            f"model.adapter_layers is {model.adapter_layers}, but conditioner.kind text writes into the prompt, which "
            "every layer reads; set model.adapter_layers=null"
        )


def check_base(model: PolicyModelConfig, tune: TuneConfig) -> None:
    """What is trained is kept in float32."""
    if model.base is not None and tune.mode == "full":
        raise ValueError(
            f"model.base is {model.base}, which is how a frozen model is kept, but tune.mode full trains it; set "
            "tune.mode=lora, or model.base=null"
        )


@record
class SFTConfig(RunConfig):
    """`chorus train sft`: supervised start on completions; its result is π_ref of later runs."""

    data: ExampleDataConfig = Field(description="Where prompts and completions come from.")
    model: PolicyModelConfig = Field(description="Model that is tuned.")
    tune: TuneConfig = Field(default=TuneConfig(), description="Which parameters are trained.")
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: SFTTrainConfig = Field(description="Length, batches, checkpoints.")
    mesh: MeshConfig = Field(default=MeshConfig(), description="How the devices share the work.")
    track: Track = ("tensorboard",)
    completions: Literal["chosen", "all"] = Field(
        default="chosen",
        description="Learn the preferred completions, or every distinct one (a start without taste).",
    )

    @model_validator(mode="after")
    def _consistent(self):
        check_schedule(self)
        check_base(self.model, self.tune)
        return self


@record
class DPOConfig(RunConfig):
    """`chorus train dpo`: one policy conditioned on coefficients, or a plain DPO-family policy."""

    data: StreamedDataConfig = Field(description="Where pairs come from.")
    model: PolicyModelConfig = Field(description="Model that is tuned; at the same time π_ref.")
    rewards: str | None = Field(
        default=None,
        min_length=1,
        description="Directory of a reward run; null only for losses without users.",
    )
    tune: TuneConfig = Field(
        default=TuneConfig(), description="Which parameters are trained besides the conditioner."
    )
    optimizer: OptimizerConfig = Field(description="AdamW and its schedule.")
    train: PairTrainConfig = Field(description="Length, batches, checkpoints.")
    loss: PreferenceLossConfig = Field(
        default=PreferenceLossConfig(), description="Which member of the DPO family."
    )
    rail: RailConfig = Field(default=RailConfig(), description="The aggregate-prior term.")
    rails: RailsConfig = Field(
        default=RailsConfig(), description="What may be personal: the rails of the reward run."
    )
    conditioner: ConditionerConfig = Field(
        default=ConditionerConfig(), description="How coefficients act on the policy."
    )
    users: UsersMixConfig = Field(
        default=UsersMixConfig(), description="Whose coefficients training rows get."
    )
    groups: GroupsConfig = Field(
        default=GroupsConfig(), description="How completions of one prompt are packed."
    )
    guardrails: GuardrailsConfig | None = Field(
        default=None,
        description="What is not for sale in training, whatever the coefficients say; null: nothing.",
    )
    mesh: MeshConfig = Field(default=MeshConfig(), description="How the devices share the work.")
    track: Track = ("tensorboard",)

    def unread(self) -> Iterator[Unread]:
        if not self.loss.personal:
            sections = ["conditioner", "users", "rail", "rails"] + (
                ["rewards"] if self.loss.annotation == "none" else []
            )
            yield Unread(sections, "loss.kind", f"loss.kind {self.loss.kind}, one policy for all")

    @model_validator(mode="after")
    def _consistent(self):
        check_schedule(self)
        check_base(self.model, self.tune)
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
        guard = self.guardrails
        if guard is not None and guard.of_coefficients and self.loss.kind not in ("soft", "regression"):
            raise ValueError(
                f"guardrails.{guard.of_coefficients[0]} changes what coefficients pay for, and loss.kind {self.loss.kind} "
                "learns from labels; choose soft or regression, or keep to checks with gates"
            )
        if guard is not None and guard.worst is not None and not self.loss.personal:
            raise ValueError(
                f"guardrails.worst compares people, and loss.kind {self.loss.kind} knows none; choose soft, regression or "
                "observed, or remove it"
            )
        if self.loss.kind == "cdpo" and self.loss.label_smoothing == 0:
            raise ValueError("loss.label_smoothing must be above 0 for loss.kind cdpo; 0 would be plain dpo")
        return self


class Supervised(Protocol):
    """What training on rows that are all there at the beginning reads of its configuration: SFT, DPO, reward models."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def model(self) -> PolicyModelConfig: ...
    @property
    def tune(self) -> TuneConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def mesh(self) -> MeshConfig: ...


def check_schedule(config: Supervised) -> None:
    """Refuse a warm-up that is as long as the run."""
    if config.train.steps is not None and config.optimizer.warmup_steps >= config.train.steps:
        raise ValueError(
            f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be smaller than "
            f"train.steps ({config.train.steps})"
        )
