"""The configuration of `chorus evaluate`."""

from pydantic import Field

from rlhf.run.config.common import MeshConfig, PeopleDataConfig, RunConfig
from rlhf.run.record import record
from rlhf.train.config import NameConfig


@record
class EvaluateUsersConfig:
    count: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000_000,
        description="Held-out people evaluated, the first in split order; null means all.",
    )
    answers: int = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="Answers from which each person's coefficients are estimated; 0 is the prior.",
    )


@record
class EvaluateSamplingConfig:
    num_samples: int = Field(
        default=8, ge=1, le=100_000, description="Answers sampled for each person and prompt."
    )
    temperature: float = Field(default=1.0, ge=0, le=1e6, description="Sampling temperature; 0 is greedy.")
    max_new_tokens: int = Field(default=64, ge=1, le=1_000_000, description="Longest answer, in tokens.")
    skip_special_tokens: bool = Field(
        default=True,
        description="Leave special tokens out of the text that rewards see; as rollout.skip_special_tokens in training.",
    )


@record
class EvaluateConfig(RunConfig):
    """`chorus evaluate`: the U×U matrix, swap, KL, against π_ref and π_agg."""

    data: PeopleDataConfig = Field(
        description="Preferences of the people evaluated; divided as in the reward run."
    )
    model: NameConfig = Field(description="Model the policy was trained from (π_ref).")
    policy: str = Field(min_length=1, description="Directory of the policy run.")
    rewards: str = Field(min_length=1, description="Directory of the reward run.")
    users: EvaluateUsersConfig = Field(default=EvaluateUsersConfig(), description="Who is evaluated.")
    sampling: EvaluateSamplingConfig = Field(
        default=EvaluateSamplingConfig(), description="How answers are drawn."
    )
    mesh: MeshConfig = Field(default=MeshConfig(), description="How the devices share the work.")
    enumerate: bool = Field(
        default=True,
        description="Take the data's distinct completions as the whole answer space: exact expectations.",
    )
