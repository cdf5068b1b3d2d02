"""The configuration of `chorus evaluate` with policies: what they write, for whom, on which prompts, judged by what."""

from collections.abc import Iterator

from pydantic import Field, model_validator

from rlhf.phi.columns.config import ColumnConfig
from rlhf.phi.reward import HostConfig
from rlhf.policy.generation import Drawing
from rlhf.run.config.address import (
    DEFAULT_VARIABLE,
    Parallel,
    Retries,
    Timeout,
    check_address,
    may_send,
    refusal,
)
from rlhf.run.config.common import MeshConfig, PeopleDataConfig, RunConfig, Track
from rlhf.run.config.unread import Unread
from rlhf.run.record import record


@record
class WritingConfig:
    num_samples: int = Field(
        default=2, ge=1, le=10_000, description="Completions sampled for each policy, person and prompt."
    )
    max_new_tokens: int = Field(default=64, ge=1, le=1_000_000, description="Longest completion, in tokens.")
    temperature: float = Field(default=1.0, ge=0, le=1e6, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample from the likeliest tokens of this mass; 1 is all."
    )
    skip_special_tokens: bool = Field(
        default=True,
        description="Leave special tokens out of the text that rewards see; as rollout.skip_special_tokens in training.",
    )
    batch: int = Field(default=64, ge=1, le=100_000, description="Completions written at a time.")

    @property
    def untouched(self) -> bool:
        """Whether completions are drawn from the policy as it is, so that its log-probs are theirs."""
        return self.temperature == 1.0 and self.top_p == 1.0

    def drawing(self) -> Drawing:
        return Drawing(
            self.max_new_tokens,
            self.temperature,
            top_p=self.top_p,
            batch=self.batch,
            skip_special_tokens=self.skip_special_tokens,
        )


@record
class ServerConfig:
    """How policies behind an address are asked."""

    api_key_variable: str = Field(
        default=DEFAULT_VARIABLE,
        min_length=1,
        description="Environment variable that holds the key; unset means that none is sent. One that begins with "
        "CHORUS_, or a provider's own for that provider's host.",
    )
    api_key_variables: dict[str, str] = Field(
        default_factory=dict,
        description="Address → environment variable with its key, where it is another than api_key_variable.",
    )
    parallel: Parallel = 8
    timeout_seconds: Timeout = 120.0
    retries: Retries = 3

    def variable_of(self, address: str) -> str:
        """Name of the environment variable with the key of an address."""
        return self.api_key_variables.get(address, self.api_key_variable)

    @model_validator(mode="after")
    def _keys_go_where_they_may(self):
        for address, variable in self.api_key_variables.items():
            check_address(address)
            if not may_send(variable, address):
                raise ValueError(refusal(variable, address))
        return self


@record
class OutputsConfig(RunConfig):
    """`chorus evaluate` over any number of policies: samples, wins, diversity, quality, one report."""

    policies: tuple[str, ...] = Field(
        min_length=1,
        max_length=64,
        description="[NAME=]SOURCE each: a run of chorus train, a Hugging Face directory or model name, `reference`, or "
        "ADDRESS#MODEL behind an OpenAI-compatible address; then parts: @STEP a run's checkpoint, @aggregate a run's policy for "
        "everybody, @in-context with the person's answers in the prompt, @best-of-N the best of N by the person's own reward.",
    )
    people: tuple[str, ...] = Field(
        default=("held-out",),
        min_length=1,
        description="held-out, population (w = μ), sparse, median, extreme (by answers and by distance from μ), or names "
        "of people of the reward run.",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="People taken of each of these groups; null: all held-out people, five of the other groups.",
    )
    answers: int = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="Answers from which a held-out person's coefficients are estimated; 0 is the prior.",
    )
    rewards: str | None = Field(
        default=None,
        min_length=1,
        description="Reward run: whose people they are, and the judge of each person's answers; null: nobody in particular.",
    )
    judges: tuple[ColumnConfig, ...] = Field(
        default=(),
        description="Further judges, the same for everybody: functions, classifiers, models behind an address "
        "(docs/columns.md has their keys).",
    )
    data: PeopleDataConfig | None = Field(
        default=None,
        description="Preferences of held-out people, and prompts where none are given; null: those of the reward run.",
    )
    prompts: str | None = Field(
        default=None,
        min_length=1,
        description="File of prompts: one a line, or JSON lines with a prompt; null: those of `data`.",
    )
    max_prompts: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Only the first so many prompts; null: all."
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="π_ref; null: the model from which the first of the policies that is a run was trained.",
    )
    enumerate: bool = Field(
        default=False,
        description="Exact figures as well, over all answers that the data lists for a prompt; of policies with people.",
    )
    sampling: WritingConfig = Field(default=WritingConfig(), description="How completions are drawn.")
    inspect_logs: bool = Field(
        default=False, description="Write a log of Inspect for each policy, in inspect/ of the run directory."
    )
    track: Track = ()
    server: ServerConfig = Field(
        default=ServerConfig(), description="How policies behind an address are asked."
    )
    host: HostConfig = Field(default=HostConfig(), description="How `judges` are computed.")
    mesh: MeshConfig = Field(default=MeshConfig(), description="How the devices share the work.")

    def unread(self) -> Iterator[Unread]:
        if self.rewards is None:
            yield Unread(["answers", "count"], "rewards", "rewards null")

    @model_validator(mode="after")
    def _somebody_and_something(self):
        self.mesh.need_one_process("policies are compared")
        if self.rewards is None and self.people != ("held-out",):
            raise ValueError("people belong to a reward run; give rewards, or leave people out")
        if self.rewards is None and self.data is None and self.prompts is None:
            raise ValueError(
                "prompts: none given; give a file of prompts, or data, or rewards fitted on some"
            )
        if self.enumerate and self.rewards is None:
            raise ValueError("enumerate: answers are listed by the data of a reward run; give rewards")
        for address in self.server.api_key_variables:
            if not any(f"{address}#" in policy for policy in self.policies):
                raise ValueError(f"server.api_key_variables: no policy is at {address!r}")
        if any(one.gate is not None for one in self.judges):
            raise ValueError("judges: a gate judges nothing; leave out gate")
        if len({one.name for one in self.judges}) < len(self.judges):
            raise ValueError("judges: two have the same name; give each its own")
        return self
