"""What fixes the compiled reinforcement-learning program (`Static`), and the numbers a sweep varies (`Hyper`).

Shapes and names shared by the modules of this package: B rows = P prompts × U people a prompt × G completions, the G
completions of one (prompt, person) next to one another; W prompt slots (left-padded), T completion slots, L = W + T;
K basis outputs; C = K + 2 channels: the K outputs, the per-token KL to the reference and the missing stop token,
weighed (w_1 … w_K, −β, −penalty).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rlhf.objectives.advantages import CRITIC_FREE
from rlhf.objectives.kl_control import Controller
from rlhf.objectives.surrogate import Aggregation
from rlhf.policy.conditioning import UserShares
from rlhf.train import optim

EXTRA_CHANNELS = 2  # the KL, and the missing stop token


def num_channels(num_basis: int) -> int:
    """C for K basis outputs."""
    return num_basis + EXTRA_CHANNELS


@dataclasses.dataclass(frozen=True)
class CriticSpec:
    """What estimates the channels' values.

    Attributes:
      num_basis: K.
      sees_person: whether z is an input (always where there are people).
      hidden: width of the MLP's one hidden layer.
      separate: own adapters over the frozen base (initialised from the policy's), or the policy's activations.
      stop_gradient: with a shared backbone, keep the value loss out of the policy's adapters.
      from_rewards: values are what the compiled reward says of the completion so far, plus what the heads learn.
    """

    num_basis: int
    sees_person: bool
    hidden: int = 128
    separate: bool = False
    stop_gradient: bool = True
    from_rewards: bool = False


@dataclasses.dataclass(frozen=True)
class Static:
    """A change here compiles again, a change anywhere else does not.

    Attributes:
      graphdef: the policy with its adapters; `reference` the same stages without any (the same object when all
        weights are trained). Both come from `policy.structure`.
      schedule: of the learning rate.
      algorithm: "ppo" (needs `critic`), or an estimator of `advantages.CRITIC_FREE`.
      group_size: G. max_new_tokens: T.
      epochs, minibatches: passes over the rollout, and parts of a pass; minibatches divides B.
      aggregation: how tokens become a loss (`objectives.aggregate`).
      kl_in: "reward", the KL is a channel; or "loss", a term of the loss.
      kl_estimator: of that KL. k1 in the reward is unbiased. In the loss k1 has zero mean gradient and is refused, k2 has the
        gradient of KL(π‖π_ref), k3 that of KL(π_ref‖π) (Tang and Munos 2025).
      kl_controller: how β moves.
      centre: subtract the mean of the (prompt, person) group from the token advantages (PPO; estimators do it anyway).
      scaling: "running", divide by one scale for the whole run; "batch", whiten over the batch; "none". The
        estimators that standardise (grpo, reinforce++, gdpo) are never scaled again.
      critic: None without one.
      shares: how many groups are drawn for whom; None where people are given as fixed weights.
      filtered: whether sampling uses top-k, top-p or min-p.
      dtype: what trained base weights are computed in (`policy.merge`).
      relabel: so many further people learn from every group of completions (`rl.relabel`); 0 for none.
      extra: a further term of the loss, (params, rows) → (scalar, metrics), hashable; used where an update is given rows.
    """

    graphdef: nnx.GraphDef
    reference: nnx.GraphDef
    schedule: optim.Schedule
    algorithm: str
    group_size: int
    max_new_tokens: int
    epochs: int = 1
    minibatches: int = 1
    aggregation: Aggregation = "token"
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_controller: Controller = "fixed"
    centre: bool = True
    scaling: Literal["running", "batch", "none"] = "running"
    critic: CriticSpec | None = None
    shares: UserShares | None = None
    filtered: bool = False
    dtype: str = "float32"
    relabel: int = 0
    extra: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]] | None = None

    def __post_init__(self):
        if self.algorithm != "ppo" and self.algorithm not in CRITIC_FREE:
            raise ValueError(f"algorithm {self.algorithm!r} is none of ppo, {', '.join(CRITIC_FREE)}")
        if (self.algorithm == "ppo") != (self.critic is not None):
            raise ValueError(
                f"algorithm {self.algorithm!r} with critic {self.critic}: ppo has one, others none"
            )
        if self.group_size < 2 and (self.algorithm != "ppo" or self.centre):
            raise ValueError(f"group_size {self.group_size}: a group of one has no mean to subtract")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 in the loss has a gradient of mean zero; use k2 or k3")
        if self.relabel and (self.algorithm not in ("centred", "rloo") or self.kl_in == "loss"):
            raise ValueError(
                f"relabel with algorithm {self.algorithm!r} and the KL in the {self.kl_in}: weights on completions are "
                "defined for centred and rloo with the KL in the reward"
            )


class Hyper(NamedTuple):
    """Float32 scalars; changing one compiles nothing.

    Attributes:
      clip_low, clip_high: the ratio counts within [1 − low, 1 + high].
      value_clip: how far a value may move from the rollout's (inf: no clipping). value_coef, entropy_coef: weights in the loss.
      discount, gae_lambda: γ and λ of GAE.
      kl_target: nats a completion that a controller steers to; kl_horizon: completions (controller "adaptive").
      stop_kl: no more updates in an iteration once KL(old‖new) exceeds this many nats a token; inf: never.
      missing_eos_penalty: subtracted from w·φ of a completion without a stop token.
      scale_decay: share of the running scale that an iteration keeps.
      relabel_limit: c, the largest importance weight of a relabelled completion.
      critic_rate: learning rate of the critic in multiples of the policy's.
      beta, eta: price of KL to π_ref and to π_agg, as they enter w_eff (`conditioning.effective_coef`).
    """

    clip_low: jax.Array
    clip_high: jax.Array
    value_clip: jax.Array
    value_coef: jax.Array
    entropy_coef: jax.Array
    discount: jax.Array
    gae_lambda: jax.Array
    kl_target: jax.Array
    kl_horizon: jax.Array
    stop_kl: jax.Array
    missing_eos_penalty: jax.Array
    scale_decay: jax.Array
    relabel_limit: jax.Array
    critic_rate: jax.Array
    beta: jax.Array
    eta: jax.Array

    @classmethod
    def of(cls, **changes: float) -> "Hyper":
        """The usual values of PPO on language models, with `changes`; an unknown name raises TypeError."""
        values = {
            "clip_low": 0.2,
            "clip_high": 0.2,
            "value_clip": float("inf"),
            "value_coef": 1.0,
            "entropy_coef": 0.0,
            "discount": 1.0,
            "gae_lambda": 0.95,
            "kl_target": 6.0,
            "kl_horizon": 10_000.0,
            "stop_kl": float("inf"),
            "missing_eos_penalty": 0.0,
            "scale_decay": 0.99,
            "relabel_limit": 1.0,
            "critic_rate": 1.0,
            "beta": 0.1,
            "eta": 0.0,
        } | changes
        return cls(**{name: jnp.float32(value) for name, value in values.items()})
