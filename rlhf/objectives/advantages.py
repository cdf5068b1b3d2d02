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

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from pydantic import Field

from rlhf.objectives.surrogate import Aggregation
from rlhf.run.config.unread import Unread
from rlhf.run.record import record

EPSILON = 1e-4  # added to standard deviations, as GRPO and GDPO do
# Of the largest number of a group, a float32 each: what rounding leaves of the differences between equal ones.
RESOLUTION = 8 * float(np.finfo(np.float32).eps)
EXTRA_CHANNELS = 2  # the KL, and the missing stop token


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


def group_centred(values: Float[Array, " B"], group_size: int) -> Float[Array, " B"]:
    """x − mean over the completions of one (prompt, person); exactly 0 where they differ by less than their resolution.

    The mean of equal numbers need not be that number: 0.35 three times leaves 1e-8, which dividing by a deviation or by a
    running scale would blow up to advantages of 1 that nobody earned.
    """
    signal = tells_apart(values.reshape(-1, group_size))
    return jnp.where(jnp.repeat(signal, group_size), values - group_mean(values, group_size), 0.0)


def tells_apart(grouped: Float[Array, "P G"]) -> Bool[Array, " P"]:
    """Whether the numbers of a group differ by more than their resolution."""
    spread = grouped.max(axis=1) - grouped.min(axis=1)
    return spread > RESOLUTION * jnp.abs(grouped).max(axis=1)


def centre_tokens(
    advantages: Float[Array, "B T"], mask: Bool[Array, "B T"], group_size: int
) -> Float[Array, "B T"]:
    """Subtract the mean over all tokens of the same (prompt, person); 0 outside the mask, and as `group_centred`."""
    real = mask.astype(advantages.dtype)
    grouped = (advantages * real).reshape(-1, group_size * advantages.shape[1])
    count = real.reshape(grouped.shape).sum(axis=1)
    mean = jnp.repeat(grouped.sum(axis=1) / jnp.maximum(count, 1.0), group_size)
    own, tokens = mask.reshape(grouped.shape), advantages.reshape(grouped.shape)
    highest = jnp.max(tokens, axis=1, where=own, initial=-jnp.inf)
    lowest = jnp.min(tokens, axis=1, where=own, initial=jnp.inf)
    signal = highest - lowest > RESOLUTION * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))
    return jnp.where(mask & jnp.repeat(signal, group_size)[:, None], advantages - mean[:, None], 0.0)


def masked_whiten(
    values: Float[Array, "B T"], mask: Bool[Array, "B T"], *, shift: bool = True
) -> Float[Array, "B T"]:
    """(x − mean)/sd over the masked entries of the whole batch; `shift=False` puts the mean back.

    Entries that differ by less than their resolution all are the mean.
    """
    real = mask.astype(values.dtype)
    count = jnp.maximum(real.sum(), 1.0)
    mean = jnp.sum(values * real) / count
    variance = jnp.sum(real * (values - mean) ** 2) / jnp.maximum(count - 1.0, 1.0)
    largest = jnp.max(jnp.abs(values), where=mask, initial=0.0)
    deviation = jnp.where(jnp.sqrt(variance) > RESOLUTION * largest, values - mean, 0.0)
    whitened = deviation * jax.lax.rsqrt(variance + 1e-8)
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
    return group_centred(scalarise(returns, weights), group_size)


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
    return group_centred(total, group_size) / (group_std(total, group_size) + EPSILON)


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
        lambda channel: group_centred(channel, group_size) / (group_std(channel, group_size) + EPSILON),
        in_axes=1,
        out_axes=1,
    )(returns)
    advantage = scalarise(per_channel, weights)
    return (advantage - advantage.mean()) / (advantage.std(ddof=1) + EPSILON)


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A critic-free estimator, and what the rest of an update has to know about it.

    Attributes:
      advantage: returns [B, C], weights [B, C], size G of a group → one advantage a completion, [B].
      formula, strength: for `docs/rl.md`: the advantage, and what becomes of a taste four times as strong.
      factor: G → f where A = f · (R − mean); None for those that standardise by themselves. Only the former are divided by
        a running scale and defined for weighed completions.
    """

    advantage: Callable[[Float[Array, "B C"], Float[Array, "B C"], int], Float[Array, " B"]]
    formula: str
    strength: str
    factor: Callable[[int], float] | None = None

    def kl_share(self, group_size: int) -> float:
        """What a KL in the loss is multiplied by to be weighed against these advantages by β.

        R_i − mean(R) holds R_i itself, which shrinks its gradient to (G − 1)/G of the objective's: a KL outside it would be
        overpriced by as much. RLOO has no such factor; the estimators that standardise have no scale to keep.
        """
        return 1.0 if self.factor is None else self.factor(group_size) * (1.0 - 1.0 / group_size)


# The one list of them: configuration, checks, messages, documentation and tests derive from it.
ESTIMATORS: dict[str, Estimator] = {
    "centred": Estimator(
        centred,
        "R − mean",
        "moves the policy four times as far: fixed point π_ref·exp(u/β)",
        factor=lambda group_size: 1.0,
    ),
    "rloo": Estimator(
        leave_one_out, "G/(G−1) (R − mean)", "kept", factor=lambda group_size: group_size / (group_size - 1)
    ),
    "reinforce++": Estimator(
        batch_standardised,
        "(R − mean), then standardised over the batch",
        "kept relative to the others in the batch; the common size is lost",
    ),
    "grpo": Estimator(
        group_standardised,
        "(R − mean)/(sd + 1e-4)",
        "**erased**: fixed point π_ref·exp(u/(β sd(u))), the same for u and 4u",
    ),
    "gdpo": Estimator(
        channel_standardised,
        "Σ_k w_k (φ_k − mean)/(sd_k + 1e-4), then standardised over the batch",
        "**erased**",
    ),
}
SCALED = tuple(name for name, estimator in ESTIMATORS.items() if estimator.factor is not None)
STANDARDISED = tuple(name for name in ESTIMATORS if name not in SCALED)
if TYPE_CHECKING:
    EstimatorName = str
else:
    EstimatorName = Literal[tuple(ESTIMATORS)]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@record
class AlgorithmConfig:
    """What PPO and the critic-free estimators share."""

    epochs: int = Field(default=1, ge=1, le=1_000, description="Passes over the rows of an iteration.")
    minibatches: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Parts of a pass, one optimiser step each; must divide the rows of an iteration.",
    )
    clip_low: float = Field(
        default=0.2, gt=0, le=1e6, description="ε below: the ratio π/π_old counts from 1 − clip_low on."
    )
    clip_high: float = Field(
        default=0.2,
        gt=0,
        le=1e6,
        description="ε above: the ratio π/π_old counts up to 1 + clip_high; DAPO takes 0.28.",
    )
    entropy_coef: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Weight of the entropy bonus in the loss, per nat a token; 0 means none.",
    )
    missing_eos_penalty: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Subtracted from the reward of a completion that did not end by itself; 0 means none.",
    )
    overlong_tokens: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="missing_eos_penalty grows from 0 to its whole over so many last tokens of rollout.max_new_tokens, instead "
        "of at the missing stop token at once (DAPO's soft overlong punishment); 0 means at once.",
    )
    scaling: Literal["running", "batch", "none"] = Field(
        default="running",
        description="What advantages are divided by: one running scale for the whole run; batch, the batch's own "
        f"(whitening); or nothing. {listed(STANDARDISED)} have their own and are never divided again.",
    )
    scale_decay: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the running scale that an iteration keeps (running only).",
    )

    def unread(self) -> Iterator[Unread]:
        if self.scaling != "running":
            yield Unread(["scale_decay"], "scaling", f"algorithm.scaling {self.scaling}")


@record
class GRPOAlgorithmConfig(AlgorithmConfig):
    """Estimators without a critic (`ESTIMATORS`)."""

    kind: EstimatorName = Field(
        default="centred",
        description="Estimator of the advantage. centred, rloo and reinforce++ keep the strength of a taste; grpo "
        "and gdpo divide by a deviation of the group, which erases it where kl.place is loss.",
    )
    aggregation: Aggregation = Field(
        default="constant",
        description="How token losses become one: mean over tokens (DAPO), over tokens and then completions (GRPO), "
        "or sum over max_new_tokens (Dr.GRPO; no preference for a length).",
    )
    surrogate: Literal["token", "sequence", "weighted"] = Field(
        default="token",
        description="token: a clipped ratio a token (PPO, GRPO, DAPO). sequence: one ratio a completion, the geometric mean "
        "(GSPO; clips of about 4e-4). weighted: clipped weights without a gradient on log π (CISPO).",
    )
    relabel: int = Field(
        default=0,
        ge=0,
        le=1_000,
        description="Further people for whom every group of completions is learned from once more, with truncated "
        f"importance weights ({listed(SCALED)} with kl.place reward); 0 means none.",
    )
    relabel_limit: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="Largest importance weight π(y|x, other)/π(y|x, own) of a relabelled completion.",
    )

    @property
    def scaled(self) -> bool:
        """Whether `scaling` applies; the other estimators standardise by themselves."""
        return self.kind in SCALED

    def unread(self) -> Iterator[Unread]:
        if not self.scaled:
            yield Unread(["scaling", "scale_decay"], "kind", f"algorithm.kind {self.kind}")
        else:
            yield from super().unread()
        if self.surrogate == "weighted":
            yield Unread(["clip_low"], "surrogate", "algorithm.surrogate weighted")
        if not self.relabel:
            yield Unread(["relabel_limit"], "relabel", "algorithm.relabel 0")


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
