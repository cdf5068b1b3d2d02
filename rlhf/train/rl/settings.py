"""What the compiled programs of reinforcement learning take: the settings of a run, and what else fixes a program.

Shapes and names shared by the modules of this package: B rows = P prompts × U people a prompt × G completions, the G
completions of one (prompt, person) next to one another; W prompt slots (left-padded), T completion slots, L = W + T;
K basis outputs; C = K + 2 channels: the K outputs, the per-token KL to the reference and the missing stop token,
weighed (w_1 … w_K, −β, −penalty).
"""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import PyTree
from pydantic import Field, model_validator

from rlhf.objectives.advantages import SCALED, GRPOAlgorithmConfig, PPOAlgorithmConfig, listed
from rlhf.objectives.kl_control import KLConfig
from rlhf.policy.conditioning import RailConfig, UserShares
from rlhf.policy.logprobs import PolicyParams
from rlhf.policy.sampling import SamplingSettings
from rlhf.run.record import Count, record
from rlhf.train import optim
from rlhf.train.guardrails.config import GuardrailsConfig
from rlhf.train.optim import OptimizerConfig
from rlhf.train.rl.critic import CriticConfig

Algorithm = PPOAlgorithmConfig | GRPOAlgorithmConfig


@record
class RolloutConfig:
    """What one iteration samples: prompts × people × completions rows."""

    prompts_per_step: int = Field(default=8, ge=1, le=100_000, description="Prompts in an iteration.")
    users_per_prompt: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="People drawn for each prompt; each gets completions of their own.",
    )
    completions: int = Field(
        default=4,
        ge=1,
        le=10_000,
        description="Completions of one prompt for one person: the group that is centred together.",
    )
    max_prompt_tokens: int = Field(
        default=512, ge=1, le=1_000_000, description="Longest prompt, in tokens; see data.too_long."
    )
    max_new_tokens: int = Field(ge=1, le=1_000_000, description="Longest completion, in tokens.")
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="Sampling temperature; log-probs are those of the untempered policy, so other values than 1 "
        "bias the gradient.",
    )
    top_k: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Sample from the k likeliest tokens; 0 means all."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample from the likeliest tokens of this mass; 1 means all."
    )
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Drop tokens below this fraction of the likeliest's probability; 0 none.",
    )
    skip_special_tokens: bool = Field(
        default=True,
        description="Leave special tokens out of the text that rewards and samples.jsonl see; false: rewards see `<think>` and "
        "its like where the tokenizer holds them for special. The token that ends a completion is never shown.",
    )

    @property
    def filtered(self) -> bool:
        """Whether anything is cut from the distribution that is sampled from."""
        return bool(self.top_k or self.top_p < 1.0 or self.min_p > 0.0)

    def sampling(self, rows: int) -> SamplingSettings:
        """How so many rows are drawn."""
        return SamplingSettings.of(rows, self.temperature, self.top_k, self.top_p, self.min_p)


@record
class RLSettings:
    """The sections of a run that compiled code reads, as they stand in its configuration; `traced` before they go there.

    Attributes:
      critic: null for the estimators without one. guardrails: null for none. num_steps: optimiser steps of the run.
    """

    algorithm: Algorithm
    critic: CriticConfig | None = None
    rollout: RolloutConfig
    kl: KLConfig
    rail: RailConfig = RailConfig()
    guardrails: GuardrailsConfig | None = None
    optimizer: OptimizerConfig
    num_steps: Count

    @model_validator(mode="after")
    def _consistent(self):
        check_algorithm(self.algorithm, self.critic, self.rollout, self.kl)
        return self


@dataclasses.dataclass(frozen=True)
class RLProgram:
    """What fixes a compiled program besides the settings; static.

    Attributes:
      graphdef: the policy with its adapters; `reference` the same stages without any (the same object when all
        weights are trained). Both come from `policy.structure`.
      shares: how many groups are drawn for whom; None where people are given as fixed weights.
      filtered: whether sampling uses top-k, top-p or min-p, which are numbers (`RolloutConfig.filtered`).
      dtype: what trained base weights are computed in (`policy.merge`).
      extra: a further term of the loss, (params, rows) → (scalar, metrics), hashable; used where an update is given rows.
      own: a user's own optimiser (`optim.apply_gradients`).
      skip: an iteration that is not finite is left out (`optim.unless_finite`).
    """

    graphdef: nnx.GraphDef
    reference: nnx.GraphDef
    shares: UserShares | None = None
    filtered: bool = False
    dtype: str = "float32"
    extra: Callable[[PolicyParams, PyTree], tuple[jax.Array, dict[str, jax.Array]]] | None = None
    own: optim.Own = None
    skip: bool = False


def check_algorithm(
    algorithm: Algorithm, critic: CriticConfig | None, rollout: RolloutConfig, kl: KLConfig
) -> None:
    """Raises ValueError for sections that each mean something, but not together."""
    if isinstance(algorithm, PPOAlgorithmConfig):
        if critic is None:
            raise ValueError("critic: ppo needs one")
        if algorithm.centre and rollout.completions < 2:
            raise ValueError(
                f"rollout.completions {rollout.completions}: a group of one has no mean to subtract; give at least "
                "2 or set algorithm.centre to false"
            )
        return
    if critic is not None:
        raise ValueError(f"critic: algorithm.kind {algorithm.kind} has none")
    if rollout.completions < 2:
        raise ValueError(
            f"rollout.completions {rollout.completions}: algorithm.kind {algorithm.kind} compares the "
            "completions of one prompt and person; give at least 2, or use chorus train ppo"
        )
    if algorithm.relabel and (not algorithm.scaled or kl.place == "loss"):
        raise ValueError(
            f"algorithm.relabel {algorithm.relabel} with algorithm.kind {algorithm.kind} and kl.place "
            f"{kl.place}: completions are weighed for {listed(SCALED)} with kl.place reward; change these or "
            "set relabel to 0"
        )
