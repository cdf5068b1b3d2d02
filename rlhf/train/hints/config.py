"""The `hints` section of `chorus train ppo` and `chorus train grpo`; `docs/feedback.md` says what a hint may do."""

from pydantic import Field

from rlhf.run.record import record


@record
class HintsConfig:
    """What people said about completions, learned from beside the rewards."""

    path: str = Field(
        min_length=1,
        description="Rows of user_id (somebody the reward run knows), prompt, completion and hint; verified: true where "
        "somebody checked the claim of a hint about facts.",
    )
    coef: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="λ, weight of the mean divergence a token, of hinted rows and of anchors each.",
    )
    rows_per_step: int = Field(
        default=8,
        ge=1,
        le=100_000,
        description="Hinted rows in every optimiser step of an iteration; all rows where there are fewer.",
    )
    anchor_rows: int = Field(
        default=8,
        ge=0,
        le=100_000,
        description="Rows that hold other people to the policy of the run's start, where the hints push; 0 means none. "
        "They brake what rewards teach about those people, too.",
    )
    top: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Likeliest tokens of the teacher kept at every slot, the rest as one; null: 128, or the whole "
        "vocabulary where that is smaller.",
    )
