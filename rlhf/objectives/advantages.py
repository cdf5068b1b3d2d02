"""Advantages of vector rewards: estimate on every channel, scalarise once, centre, scale.

Channels are the K basis outputs, the per-token KL and the missing stop token. A person's weights are
(w_1, …, w_K, −β, −penalty), so the price of KL does not change with the person. GAE is linear in rewards and values: the
vector goes through one scan and w·A(vector) = A(w·vector) exactly.

Dividing by a group's standard deviation erases how strong a taste is when the KL is a term of the loss, outside the
division: the fixed point is π_ref·exp(u/(β σ(u))), the same for u and 4u. A KL inside the returns is divided along with u, so the
fixed point stays π_ref·exp(u/β), at the price of steps that do not shrink near it. The default centres by group and divides
by one global running scale; the rest are options.

Shapes: B rows (B = P·G, the G completions of one (prompt, person) stand together), T tokens, C = K+2 channels.
Sources: Schulman et al. 2016 (GAE); Ahmadian et al. 2024 (RLOO); Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr.GRPO);
Hu 2025 (REINFORCE++); GDPO, arXiv 2601.05242.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import Field

from rlhf.objectives.surrogate import Aggregation
from rlhf.run.record import record

EPSILON = 1e-4  # added to standard deviations, as GRPO and GDPO do
EXTRA_CHANNELS = 2  # the KL, and the missing stop token


@record
class AlgorithmConfig:
    """What PPO and the critic-free estimators share."""

    epochs: int = Field(default=1, ge=1, description="Passes over the rows of an iteration.")
    minibatches: int = Field(
        default=1,
        ge=1,
        description="Parts of a pass, one optimiser step each; must divide the rows of an iteration.",
    )
    clip_low: float = Field(
        default=0.2, gt=0, description="ε below: the ratio π/π_old counts from 1 − clip_low on."
    )
    clip_high: float = Field(
        default=0.2,
        gt=0,
        description="ε above: the ratio π/π_old counts up to 1 + clip_high; DAPO takes 0.28.",
    )
    entropy_coef: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the entropy bonus in the loss, per nat a token; 0 means none.",
    )
    missing_eos_penalty: float = Field(
        default=0.0,
        ge=0,
        description="Subtracted from the reward of a completion that did not end by itself; 0 means none.",
    )
    scaling: Literal["running", "batch", "none"] = Field(
        default="running",
        description="What advantages are divided by: one running scale for the whole run; batch, the batch's own "
        "(whitening); or nothing. grpo, reinforce++ and gdpo have their own and are never divided again.",
    )
    scale_decay: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the running scale that an iteration keeps (running only).",
    )


@record
class GRPOAlgorithmConfig(AlgorithmConfig):
    """Estimators without a critic (`CRITIC_FREE`)."""

    kind: Literal["centred", "rloo", "grpo", "reinforce++", "gdpo"] = Field(
        default="centred",
        description="Estimator of the advantage. centred, rloo and reinforce++ keep the strength of a taste; grpo "
        "and gdpo divide by a deviation of the group, which erases it where kl.place is loss.",
    )
    aggregation: Aggregation = Field(
        default="constant",
        description="How token losses become one: mean over tokens (DAPO), over tokens and then completions (GRPO), "
        "or sum over max_new_tokens (Dr.GRPO; no preference for a length).",
    )
    relabel: int = Field(
        default=0,
        ge=0,
        description="Further people for whom every group of completions is learned from once more, with truncated "
        "importance weights (centred and rloo with kl.place reward); 0 means none.",
    )
    relabel_limit: float = Field(
        default=1.0,
        gt=0,
        description="Largest importance weight π(y|x, other)/π(y|x, own) of a relabelled completion.",
    )

    @property
    def scaled(self) -> bool:
        """Whether `scaling` applies; the other estimators standardise by themselves."""
        return self.kind in ("centred", "rloo")


@record
class PPOAlgorithmConfig(AlgorithmConfig):
    """Generalised advantages of a vector critic."""

    aggregation: Aggregation = Field(
        default="token", description="How token losses become one: see train grpo."
    )
    discount: float = Field(default=1.0, gt=0, le=1, description="γ, discount a token.")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="λ of generalised advantages: 1 is Monte Carlo, 0 one step."
    )
    centre: bool = Field(
        default=True,
        description="Subtract the mean advantage of the (prompt, person) group; needs two completions or more.",
    )

    @property
    def scaled(self) -> bool:
        """Whether `scaling` applies."""
        return True


def generalised_advantages(
    rewards: Float[Array, "B T C"],
    values: Float[Array, "B T C"],
    mask: Bool[Array, "B T"],
    discount: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
) -> tuple[Float[Array, "B T C"], Float[Array, "B T C"]]:
    """GAE on every channel: advantages and λ-returns (advantage + value), 0 outside the mask.

        δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γ λ A_{t+1}

    Args:
      values: V(s_t), read before token t. The episode ends after the last masked token: V = 0 there.
      mask: True for the tokens of a completion, up to and including its stop token; contiguous from 0.
    """
    keep = mask[..., None]
    rewards, values = jnp.where(keep, rewards, 0.0), jnp.where(keep, values, 0.0)

    def step(carry, now):
        advantage, next_value = carry
        reward, value, real = now
        delta = reward + discount * next_value - value
        advantage = jnp.where(real, delta + discount * gae_lambda * advantage, 0.0)
        return (advantage, value), advantage

    zero = jnp.zeros_like(rewards[:, 0])
    sequence = tuple(jnp.moveaxis(x, 1, 0) for x in (rewards, values, keep))
    _, advantages = jax.lax.scan(step, (zero, zero), sequence, reverse=True)
    advantages = jnp.moveaxis(advantages, 0, 1)
    return advantages, advantages + values


def num_channels(num_basis: int) -> int:
    """C for K basis outputs: they, the KL and the missing stop token."""
    return num_basis + EXTRA_CHANNELS


def channel_weights(
    user_coef: Float[Array, "B K"],
    kl_coef: Float[Array, ""] | float,
    missing_eos_penalty: Float[Array, ""] | float,
) -> Float[Array, "B C"]:
    """(w, −β, −penalty): what turns channels into one number, the same everywhere."""
    prices = [jnp.full_like(user_coef[:, :1], -price) for price in (kl_coef, missing_eos_penalty)]
    return jnp.concatenate([user_coef, *prices], axis=1)


def scalarise(channels: Float[Array, "B ... C"], weights: Float[Array, "B C"]) -> Float[Array, "B ..."]:
    """Σ_c weight_c · channel_c: the one place where a vector becomes a number."""
    return jnp.einsum("b...c,bc->b...", channels, weights)


def group_mean(values: Float[Array, " B"], group_size: int) -> Float[Array, " B"]:
    """Mean over the completions of one (prompt, person), repeated for each."""
    grouped = values.reshape(-1, group_size)
    return jnp.broadcast_to(grouped.mean(axis=1, keepdims=True), grouped.shape).reshape(-1)


def group_std(values: Float[Array, " B"], group_size: int) -> Float[Array, " B"]:
    """Standard deviation (ddof 1) over the completions of one (prompt, person), repeated for each."""
    grouped = values.reshape(-1, group_size)
    return jnp.broadcast_to(grouped.std(axis=1, ddof=1, keepdims=True), grouped.shape).reshape(-1)


def centre_tokens(
    advantages: Float[Array, "B T"], mask: Bool[Array, "B T"], group_size: int
) -> Float[Array, "B T"]:
    """Subtract the mean over all tokens of the same (prompt, person); 0 outside the mask."""
    real = mask.astype(advantages.dtype)
    grouped = (advantages * real).reshape(-1, group_size * advantages.shape[1])
    count = real.reshape(grouped.shape).sum(axis=1)
    mean = jnp.repeat(grouped.sum(axis=1) / jnp.maximum(count, 1.0), group_size)
    return jnp.where(mask, advantages - mean[:, None], 0.0)


def masked_whiten(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"], *, shift: bool = True
) -> Float[Array, "B T"]:
    """(x − mean)/sd over the masked entries of the whole batch; `shift=False` puts the mean back."""
    real = mask.astype(values.dtype)
    count = jnp.maximum(real.sum(), 1.0)
    mean = jnp.sum(values * real) / count
    variance = jnp.sum(real * (values - mean) ** 2) / jnp.maximum(count - 1.0, 1.0)
    whitened = (values - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(mask, whitened if shift else whitened + mean, 0.0)


class RunningScale(NamedTuple):
    """One number for the whole run: exponential mean of the squared advantages, and its weight so far."""

    square: Float[Array, ""]
    weight: Float[Array, ""]

    @classmethod
    def start(cls) -> "RunningScale":
        return cls(jnp.zeros(()), jnp.zeros(()))

    def update(
        self, advantages: Float[Array, "B ..."], mask: Bool[Array, "B ..."], decay: float
    ) -> "RunningScale":
        """Take in a batch; `decay` of the old mean stays. The first batch counts in full (no bias to 0)."""
        real = mask.astype(advantages.dtype)
        square = jnp.sum(real * advantages**2) / jnp.maximum(real.sum(), 1.0)
        return RunningScale(decay * self.square + (1 - decay) * square, decay * self.weight + (1 - decay))

    @property
    def value(self) -> Float[Array, ""]:
        """Root mean square of the advantages seen; 1 before any."""
        seen = self.square / jnp.maximum(self.weight, 1e-12)
        return jnp.where(seen > 0, jnp.sqrt(jnp.maximum(seen, 1e-20)), 1.0)


# Critic-free estimators: returns of the channels [B, C] and weights [B, C] → one advantage a completion, [B].
# The KL channel is in the returns, so each of them prices KL alike.


def centred(
    returns: Float[Array, "B C"], weights: Float[Array, "B C"], group_size: int
) -> Float[Array, " B"]:
    """A = R − mean_group(R), R = Σ_c weight_c · return_c. Dr.GRPO's; with the running scale, the default."""
    total = scalarise(returns, weights)
    return total - group_mean(total, group_size)


def leave_one_out(
    returns: Float[Array, "B C"], weights: Float[Array, "B C"], group_size: int
) -> Float[Array, " B"]:
    """RLOO: A_i = R_i − mean_{j≠i} R_j = G/(G−1) (R_i − mean R). Keeps the strength of a taste."""
    return centred(returns, weights, group_size) * group_size / (group_size - 1)


def group_standardised(
    returns: Float[Array, "B C"], weights: Float[Array, "B C"], group_size: int
) -> Float[Array, " B"]:
    """GRPO: A = (R − mean)/(sd + 1e-4) within the group. Erases the strength of a taste when the KL is in the loss."""
    total = scalarise(returns, weights)
    return (total - group_mean(total, group_size)) / (group_std(total, group_size) + EPSILON)


def batch_standardised(
    returns: Float[Array, "B C"], weights: Float[Array, "B C"], group_size: int
) -> Float[Array, " B"]:
    """REINFORCE++ with a group baseline: R − mean_group, then whitened over the batch.

    The batch's deviation is common to everybody, so strengths within the batch keep their ratio; the batch as a
    whole loses its size.
    """
    advantage = centred(returns, weights, group_size)
    return (advantage - advantage.mean()) / (advantage.std(ddof=1) + EPSILON)


def channel_standardised(
    returns: Float[Array, "B C"], weights: Float[Array, "B C"], group_size: int
) -> Float[Array, " B"]:
    """GDPO: every channel standardised within its group, weighted, summed, whitened over the batch.

    Only meaningful with w in whitened units (the gauge gives those): in raw units its order agrees with the person's
    own utility for about 70–75 % of pairs. Erases the strength of a taste as well.
    """
    per_channel = jax.vmap(
        lambda channel: (
            (channel - group_mean(channel, group_size)) / (group_std(channel, group_size) + EPSILON)
        ),
        in_axes=1,
        out_axes=1,
    )(returns)
    advantage = scalarise(per_channel, weights)
    return (advantage - advantage.mean()) / (advantage.std(ddof=1) + EPSILON)


Estimator = Callable[[Float[Array, "B C"], Float[Array, "B C"], int], Float[Array, " B"]]
CRITIC_FREE: dict[str, Estimator] = {
    "centred": centred,
    "rloo": leave_one_out,
    "grpo": group_standardised,
    "reinforce++": batch_standardised,
    "gdpo": channel_standardised,
}
