"""The configuration of `chorus rewards`: preferences → basis, gauge, prior, users."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewards.basis.fit import FitConfig
from rewards.files import JSONObject
from rlhf.phi.columns.config import ColumnConfig
from rlhf.run.config.common import PeopleDataConfig, RunConfig, Track
from rlhf.run.config.unread import Unread
from rlhf.run.record import record


@record
class EncoderModelConfig:
    name: str | None = Field(
        default=None,
        min_length=1,
        description="Model that embeds completions, by its hidden states or as a sentence encoder; null unless encoder.kind is "
        "lm or sentence.",
    )


@record
class EncoderConfig:
    kind: Literal["lm", "sentence", "precomputed", "attributes", "columns"] = Field(
        default="lm",
        description="lm: hidden states of model.name; sentence: vectors of the sentence encoder model.name "
        "(all-minilm-l6-v2, all-mpnet-base-v2, or a directory in the layout of sentence-transformers), which reads the "
        "completion "
        "alone; precomputed: chosen_features, rejected_features; attributes: the numbers of the attributes column; "
        "columns: the rewards of encoder.columns.",
    )
    layer: int = Field(
        default=-1,
        ge=-1_000,
        le=1_000,
        description="Layer whose output is read; negative counts from the end, 0 is the token embedding.",
    )
    pool: Literal["mean", "last"] = Field(
        default="mean", description="Mean over the completion's tokens, or its last token."
    )
    columns: tuple[ColumnConfig, ...] = Field(
        default=(), description="Off-the-shelf rewards, a list of sections; for kind columns only."
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="Samples of π_ref (JSON lines of prompt, completion) over which fit.model columns standardises; "
        "null: the completions of data.path.",
    )

    def unread(self) -> Iterator[Unread]:
        if self.kind != "lm":
            yield Unread(["layer", "pool"], "kind", f"encoder.kind {self.kind}")

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


@record
class RewardFitConfig(FitConfig):
    """The house model's settings, and which model is fitted at all.

    Attributes:
      settings: settings of a model that is named, other than house; they override what is shared.
    """

    model: str = Field(
        default="auto",
        description="Reward model that is fitted. auto: house, or crossed where texts were judged by several people and it "
        "predicts people left out better; a model that is named is fitted. Another one than house shares num_basis, dims, "
        "whitening, lapse and seed (of a list the largest); what else it has stands in fit.settings.",
    )
    annotation: Literal["none", "mixture"] = Field(
        default="none",
        description="mixture: estimate which answers are genuine, non-attitudes or made up by order and frame, and "
        "weight the fit by it (house model's margins; any model's fit); people's answers then lapse with 1 − π_G.",
    )
    settings: JSONObject = dataclasses.field(default_factory=dict, hash=False)

    @model_validator(mode="after")
    def _settings_of_the_right_model(self):
        if self.model in ("auto", "house") and self.settings:
            raise ValueError(
                f"fit.settings holds {', '.join(self.settings)}, but fit.model is {self.model}, whose keys stand in "
                "fit itself; move them there, or name the model that they are for"
            )
        return self

    def house(self) -> FitConfig:
        """The house model's part alone."""
        names = [field.name for field in dataclasses.fields(FitConfig)]
        return FitConfig(**{name: getattr(self, name) for name in names})


@record
class RewardEvaluationConfig:
    """Replay of held-out people, and the comparison with other models.

    Attributes:
      settings: settings of compared models by name, such as {lore: {num_basis: 8}}; the one fitted has its own.
    """

    counts: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        default=(0, 1, 2, 3, 5, 10, 20),
        min_length=1,
        description="Numbers of answers at which held-out people are predicted.",
    )
    seeds: int = Field(
        default=5,
        ge=1,
        le=1_000,
        description="Repetitions with other random question orders; intervals are over people.",
    )
    models: Literal["all"] | tuple[str, ...] | None = Field(
        default=None,
        description="Models compared on the four cells: names, all, or null for the fitted one and aggregate; "
        "an empty list skips comparison and controls (house only).",
    )
    settings: dict[str, JSONObject] = dataclasses.field(default_factory=dict, hash=False)
    controls: bool = Field(
        default=True,
        description="Fit every compared model again on identical people, where it must not win, and on planted "
        "tastes, where it must.",
    )
    held_out_prompts: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of prompts kept out of the comparison's fits for its unseen-prompt cells; 0 means none.",
    )
    held_out_texts: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Where no prompts are held out (0, or one prompt in all): share of texts kept out of the comparison's fits "
        "instead; comparisons with one of them are its unseen cells.",
    )
    folds: int | None = Field(
        default=None,
        ge=1,
        le=1_000,
        description="Folds of people; each person is held out once. 1: data.held_out_people alone; null: up to 5 where there are "
        "fewer than 50 people, who then are predicted on half of their choices, else 1.",
    )
    distinct_texts: bool = Field(
        default=False,
        description="Each text is used once a person and the other comparisons are left out; for pairs that were made "
        "from ratings, which are fewer answers than pairs.",
    )

    @model_validator(mode="after")
    def _ascending(self):
        if list(self.counts) != sorted(set(self.counts)):
            raise ValueError("counts must be distinct and ascending, for example [0, 3, 10]")
        return self


@record
class RewardsConfig(RunConfig):
    """`chorus rewards fit|evaluate`: preferences → basis, gauge, prior, users.

    Attributes:
      rails: which coefficients may be personal: `axes`, `half_spaces`, `trust_nats` (docs/guardrails.md); {} for all.
    """

    data: PeopleDataConfig = Field(description="Preferences and who is held out.")
    model: EncoderModelConfig = Field(
        default=EncoderModelConfig(), description="Language model behind the encoder."
    )
    encoder: EncoderConfig = Field(default=EncoderConfig(), description="How a completion becomes a vector.")
    fit: RewardFitConfig = Field(
        default_factory=RewardFitConfig, description="Joint fit of basis and coefficients."
    )
    evaluation: RewardEvaluationConfig = Field(
        default=RewardEvaluationConfig(), description="Replay of held-out people."
    )
    probes: tuple[ColumnConfig, ...] = Field(
        default=(),
        description="What axes of the basis are named after, a list of sections as of encoder.columns (functions such as "
        "`rlhf.phi.columns.bank:length`, or classifiers). Each one that φ shows becomes an axis of its own, for rails, questions "
        "and cards.",
    )
    track: Track = ("tensorboard",)
    rails: JSONObject = dataclasses.field(default_factory=dict, hash=False)

    def unread(self) -> Iterator[Unread]:
        if self.encoder.kind not in ("lm", "sentence"):
            yield Unread(["model"], "encoder.kind", f"encoder.kind {self.encoder.kind}")
        if self.evaluation.models == ():
            keys = [f"evaluation.{key}" for key in ("controls", "held_out_prompts", "settings")]
            yield Unread(keys, "evaluation.models", "evaluation.models []")

    @model_validator(mode="after")
    def _probes(self):
        for probe in self.probes:
            if probe.gate is not None:
                raise ValueError(f"probes: {probe.name!r} has a gate, but names an axis; remove gate")
            if [other.name for other in self.probes].count(probe.name) > 1:
                raise ValueError(f"probes: two are called {probe.name!r}; rename one")
        return self

    @model_validator(mode="after")
    def _model_for_lm(self):
        if self.encoder.kind in ("lm", "sentence") and self.model.name is None:
            raise ValueError(
                f"model.name is required when encoder.kind is {self.encoder.kind}; name a model or set "
                "encoder.kind=precomputed, attributes or columns"
            )
        return self
