"""The `guardrails` section of `chorus train dpo`, `ppo` and `grpo`: one record for all of them."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rlhf.phi.columns.config import ColumnConfig
from rlhf.run.config.unread import Unread
from rlhf.run.record import record


@record
class BehaviourConfig:
    """A behaviour that nobody's coefficients may pay for."""

    check: str = Field(
        min_length=1,
        description="Check that is above 0.5 where a completion shows the behaviour (and the prompt is one on which it "
        "counts).",
    )
    penalty: Literal["exact", "dual", "both"] = Field(
        default="exact",
        description="exact: λ* of every prompt, estimated within its group; dual: one price for all, raised while the "
        "behaviour is more frequent than allowed; both: λ* plus a price for what it leaves.",
    )
    allowed: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of completions that may show it under the dual price; null: that of π_ref.",
    )
    rate: float = Field(
        default=0.5, gt=0, le=1e6, description="How far one step moves the dual price, nats a unit of share."
    )

    def unread(self) -> Iterator[Unread]:
        if self.penalty == "exact":
            yield Unread(["allowed", "rate"], "penalty", "penalty exact")


@record
class TruthConfig:
    """Right answers are right for everybody."""

    check: str = Field(
        min_length=1, description="Check that is above 0.5 for right answers to prompts with a known one."
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="What the bonus is multiplied by that people get for right answers where theirs are right less often "
        "than the others'.",
    )


@record
class HonestyConfig:
    """Whoever holds a wrong stance is told so, and how sure that is; the same pay for everybody."""

    check: str = Field(
        min_length=1, description="Check that is above 0.5 where a completion corrects the asker."
    )
    where: str | None = Field(
        default=None,
        min_length=1,
        description="Check that is above 0.5 where the asker's stance is wrong, and nothing is paid elsewhere; null: everywhere.",
    )
    confidence: str | None = Field(
        default=None,
        min_length=1,
        description="Check that reads the confidence which a completion states, 0 to 1; null: it is not scored.",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Nats for a correction; nobody's coefficients move it."
    )


@record
class CalibrationConfig:
    """What somebody is shown is mixed as what they like is, instead of all being of their favourite kind."""

    kinds: tuple[str, ...] = Field(
        min_length=2,
        description="Checks that say of which kind a completion is: one each, shares of a completion.",
    )
    general: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of what π_ref shows anybody in the mix that is wanted for a person.",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Nats of reward for a nat of distance to the wanted mix."
    )


@record
class FloorConfig:
    """What the average person gets may not fall far below what π_ref gives them."""

    nats: float = Field(
        default=0.0, ge=0, le=1e6, description="How far the average person's reward may fall below π_ref's."
    )
    rate: float = Field(
        default=0.5, gt=0, le=1e6, description="How far one step moves the price, per nat of shortfall."
    )


@record
class WorstConfig:
    """The kind of people that gains least counts most."""

    groups: int = Field(
        default=4, ge=2, le=64, description="Kinds of people: clusters of their coefficients by k-means."
    )
    rate: float = Field(
        default=0.1, gt=0, le=1e3, description="How far one step moves their weights, per nat of gain."
    )


@record
class GuardrailsConfig:
    """What is not for sale, whatever the coefficients say. Each rail is off unless its section is given."""

    checks: tuple[ColumnConfig, ...] = Field(
        default=(),
        description="What completions are checked for: a list of sections as of `columns`. One with a gate is a hard check: "
        "below it a completion is never rewarded more than the worst of its group, and a group in which none passes is not "
        "learned from. The others are named by behaviour.check or truth.check.",
    )
    refused: float = Field(
        default=0.0,
        ge=-1e6,
        le=1e6,
        description="Most that a completion which fails a gate is rewarded with; it never gets more than the least of its "
        "group either.",
    )
    behaviour: BehaviourConfig | None = Field(
        default=None, description="A behaviour that nobody's coefficients may pay for; null: none."
    )
    truth: TruthConfig | None = Field(
        default=None, description="Right answers are right for everybody; null: not looked at."
    )
    honesty: HonestyConfig | None = Field(
        default=None, description="Pay for correcting a wrong stance; null: none."
    )
    calibration: CalibrationConfig | None = Field(
        default=None, description="Pay for showing a person a mix of what they like; null: none."
    )
    floor: FloorConfig | None = Field(
        default=None, description="Floor under the average person's reward; null: none."
    )
    worst: WorstConfig | None = Field(
        default=None, description="The kind of people that gains least counts most; null: all count alike."
    )

    @property
    def gates(self) -> tuple[ColumnConfig, ...]:
        """The hard checks."""
        return tuple(check for check in self.checks if check.gate is not None)

    def index(self, name: str) -> int:
        """Which of the checks has this name."""
        return [check.name for check in self.checks].index(name)

    @property
    def of_coefficients(self) -> tuple[str, ...]:
        """Keys that change what coefficients pay for; labels of people's own hold no coefficients."""
        return tuple(
            key
            for key in ("behaviour", "truth", "honesty", "calibration", "floor")
            if getattr(self, key) is not None
        )

    @property
    def of_people(self) -> tuple[str, ...]:
        """Keys that compare people with one another."""
        return tuple(key for key in ("truth", "floor", "worst") if getattr(self, key) is not None)

    def _named(self) -> Iterator[tuple[str, str]]:
        """(key, check) of every check that is named somewhere."""
        for key in ("behaviour", "truth"):
            if (part := getattr(self, key)) is not None:
                yield f"{key}.check", part.check
        if self.honesty is not None:
            for key in ("check", "where", "confidence"):
                if (name := getattr(self.honesty, key)) is not None:
                    yield f"honesty.{key}", name
        for name in () if self.calibration is None else self.calibration.kinds:
            yield "calibration.kinds", name

    def unread(self) -> Iterator[Unread]:
        if not self.gates:
            yield Unread(["refused"], "checks", "no check with a gate")

    @model_validator(mode="after")
    def _consistent(self):
        names = [check.name for check in self.checks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"checks: two are called {name!r}; rename one")
        owner: dict[str, str] = {}
        for key, name in self._named():
            if name not in names:
                raise ValueError(
                    f"{key} {name!r} is none of the checks ({', '.join(names) or 'none'}); add it to checks"
                )
            if self.checks[names.index(name)].gate is not None:
                raise ValueError(f"{key} {name!r} has a gate, which makes it a hard check; remove gate")
            if name in owner:
                raise ValueError(f"{owner[name]} and {key} are both {name!r}; give each its own")
            owner[name] = key
        for name in names:
            if name not in {*owner, *(gate.name for gate in self.gates)}:
                raise ValueError(
                    f"check {name!r} is used for nothing; give it a gate, or name it in behaviour.check or truth.check"
                )
        if not names and self.floor is None and self.worst is None:
            raise ValueError("holds no guardrail; give checks, floor or worst, or remove guardrails")
        return self


def measured_columns(config: GuardrailsConfig) -> tuple[ColumnConfig, ...]:
    """The checks as columns whose numbers are wanted: gates are compared later."""
    return tuple(dataclasses.replace(check, gate=None) for check in config.checks)
