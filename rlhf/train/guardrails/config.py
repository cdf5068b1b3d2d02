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
        return tuple(key for key in ("behaviour", "truth", "floor") if getattr(self, key) is not None)

    @property
    def of_people(self) -> tuple[str, ...]:
        """Keys that compare people with one another."""
        return tuple(key for key in ("truth", "floor", "worst") if getattr(self, key) is not None)

    def unread(self) -> Iterator[Unread]:
        if not self.gates:
            yield Unread(["refused"], "checks", "no check with a gate")

    @model_validator(mode="after")
    def _consistent(self):
        names = [check.name for check in self.checks]
        named = {
            key: part.check for key, part in (("behaviour", self.behaviour), ("truth", self.truth)) if part
        }
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"checks: two are called {name!r}; rename one")
        for key, name in named.items():
            if name not in names:
                raise ValueError(
                    f"{key}.check {name!r} is none of the checks ({', '.join(names) or 'none'}); add it to checks"
                )
            if self.checks[names.index(name)].gate is not None:
                raise ValueError(f"{key}.check {name!r} has a gate, which makes it a hard check; remove gate")
        if len(set(named.values())) < len(named):
            raise ValueError(
                f"behaviour.check and truth.check are both {named['truth']!r}; give each its own"
            )
        for name in names:
            if name not in {*named.values(), *(gate.name for gate in self.gates)}:
                raise ValueError(
                    f"check {name!r} is used for nothing; give it a gate, or name it in behaviour.check or truth.check"
                )
        if not names and self.floor is None and self.worst is None:
            raise ValueError("holds no guardrail; give checks, floor or worst, or remove guardrails")
        return self


def measured_columns(config: GuardrailsConfig) -> tuple[ColumnConfig, ...]:
    """The checks as columns whose numbers are wanted: gates are compared later."""
    return tuple(dataclasses.replace(check, gate=None) for check in config.checks)
