"""One off-the-shelf reward as a column of `encoder.kind: columns`. Which keys it takes depends on its kind."""

import re
from typing import Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import is_pydantic_dataclass

from rewards.files import JSONObject
from rlhf.run.config.address import (
    DEFAULT_VARIABLE,
    Parallel,
    Retries,
    Timeout,
    check_address,
    may_send,
    refusal,
)
from rlhf.run.record import record

KEYS: dict[str, tuple[str, ...]] = {
    "function": ("function", "limit_seconds"),
    "classifier": ("model",),
    "judge": (
        *("model", "address", "api_key_variable", "question", "opponents", "min_consistency"),
        *("parallel", "timeout_seconds", "retries", "max_tokens"),
    ),
    "votes": ("answer", "probe", "min_accuracy"),
    "reference": ("model", "reference"),
    "jit": ("function", "model"),
}
REQUIRED = {
    "function": ("function",),
    "jit": ("function",),
    "classifier": ("model",),
    "judge": ("model", "address"),
    "votes": ("probe",),
    "reference": ("model",),
}
SHARED = ("name", "kind", "gate")
LIMIT_SECONDS = 600.0


@record
class ColumnConfig:
    name: str = Field(
        min_length=1, max_length=80, description="Name of the column in reports and in φ; each one once."
    )
    kind: Literal["function", "jit", "classifier", "judge", "votes", "reference"] = Field(
        description="function: Python with TRL's signature; jit: a jittable function of tokens; classifier: a "
        "sequence-classification model; judge: a model behind an OpenAI-compatible address; votes: agreement with the "
        "majority answer; reference: certainty of the reference answer."
    )
    gate: float | None = Field(
        default=None,
        ge=-1e30,
        le=1e30,
        description="A number makes the column a gate instead of a reward: completions with a value below it are "
        "not accepted. Null: a reward.",
    )
    function: str | None = Field(
        default=None,
        min_length=3,
        description="`module:function` or `file.py:function` (function and jit only).",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="classifier: directory or hub id of a ...ForSequenceClassification model; reference: language "
        "model, the π_ref; judge: the model's name at the address; jit: language model whose tokens the function reads, "
        "in RL training the one that is trained.",
    )
    address: str | None = Field(
        default=None,
        min_length=1,
        description="OpenAI-compatible address, such as http://localhost:8000/v1 (judge only).",
    )
    api_key_variable: str = Field(
        default="OPENAI_API_KEY",
        min_length=1,
        description="Environment variable that holds the key; unset means that none is sent. One that begins with "
        "CHORUS_, or a provider's own for that provider's host (judge only).",
    )
    question: str = Field(
        default="Which completion is the better answer to the prompt?",
        min_length=1,
        description="What the judge decides (judge only).",
    )
    opponents: int = Field(
        default=4,
        ge=1,
        le=1_000,
        description="Completions of its prompt that each one is compared with, in both orders (judge only).",
    )
    min_consistency: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="Share of pairs that must get the same verdict in both orders, else the column is switched off "
        "(judge only).",
    )
    parallel: Parallel = 8
    timeout_seconds: Timeout = 120.0
    retries: Retries = 3
    max_tokens: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Longest reasoning with its verdict, in tokens (judge only).",
    )
    limit_seconds: float = Field(
        default=LIMIT_SECONDS,
        gt=0,
        le=1e6,
        description="Longest time one call of the function may take; training has host.timeout_seconds as well "
        "(function only).",
    )
    answer: str = Field(
        default="number",
        min_length=1,
        description="How an answer is found: `number` (the last one), `boxed` (the last \\boxed{}), or a regular "
        "expression with one group, whose last match counts (votes only).",
    )
    probe: str | None = Field(
        default=None,
        min_length=1,
        description="JSON lines of prompt, completions and the known answer (votes only).",
    )
    min_accuracy: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of probe prompts whose majority must be right, else the column is switched off "
        "(votes only).",
    )
    reference: str = Field(
        default="reference",
        min_length=1,
        description="Column of the data that holds the reference answer (reference only).",
    )

    @model_validator(mode="after")
    def _keys_of_its_kind(self):
        for key in REQUIRED[self.kind]:
            if getattr(self, key) is None:
                raise ValueError(f"column {self.name!r}: {key} is required for kind {self.kind}")
        cls = type(self)
        assert is_pydantic_dataclass(cls)
        fields = cls.__pydantic_fields__
        for key, info in fields.items():
            takes = key in SHARED or key in KEYS[self.kind]
            if not takes and getattr(self, key) != info.get_default():
                kinds = ", ".join(kind for kind, keys in KEYS.items() if key in keys)
                raise ValueError(
                    f"column {self.name!r}: {key} is for kind {kinds}, not {self.kind}; remove it or change kind"
                )
        if self.kind == "judge":
            assert self.address is not None
            check_address(self.address)
            # The default is nobody's choice: it is not sent elsewhere, and a set one is refused before it would be.
            chosen = self.api_key_variable != DEFAULT_VARIABLE
            if chosen and not may_send(self.api_key_variable, self.address):
                raise ValueError(f"column {self.name!r}: {refusal(self.api_key_variable, self.address)}")
        if self.kind == "votes" and self.answer not in ("number", "boxed"):
            _check_pattern(self.name, self.answer)
        return self


def _check_pattern(name: str, pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(
            f"column {name!r}: answer {pattern!r} is no regular expression ({error}); "
            "write number, boxed or an expression with one group"
        ) from None
    if groups != 1:
        raise ValueError(
            f"column {name!r}: answer {pattern!r} has {groups} groups; put brackets around the answer, once"
        )


def plain(config: ColumnConfig) -> JSONObject:
    """The keys that mean something for its kind, as JSON: what a basis stores to rebuild the column.

    A time limit changes no number; it is stored only where it was set, so that a basis keeps its hash.
    """
    keys = [*SHARED, *KEYS[config.kind]]
    if config.limit_seconds == LIMIT_SECONDS and "limit_seconds" in keys:
        keys.remove("limit_seconds")
    return {key: getattr(config, key) for key in keys}
