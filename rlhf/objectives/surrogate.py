"""Losses of policy-gradient fine-tuning: small pure functions on log-probs, values and advantages.

Every function returns one number a token; `aggregate` says how tokens become a loss. Log-probs are in nats, natural
logarithms of probabilities under the untempered policy. Masks are applied before exp, so padding cannot overflow.

Shapes: B rows, T tokens, C channels (K basis outputs and the KL).
Sources: Schulman et al. 2017 (clipped surrogate); Stiennon et al. 2020 (clipped values); Yu et al. 2025 (DAPO: two clip
ranges, token mean); Zheng et al. 2025 (GSPO); MiniMax 2025 (CISPO); Liu et al. 2025 (Dr.GRPO: constant length); Schulman 2020
(KL estimators k1, k2, k3).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

Aggregation = Literal["token", "sequence", "constant"]


def clipped_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    clip_low: Float[Array, ""] | float,
    clip_high: Float[Array, ""] | float,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """−min(r A, clip(r, 1−ε_low, 1+ε_high) A), r = π/π_old.

    Returns the loss and diagnostics: `clipped` (1 where the clip is what counts) and `ratio`.
    """
    log_ratio = jnp.where(mask, logprobs - jax.lax.stop_gradient(old_logprobs), 0.0)
    ratio = jnp.exp(log_ratio)
    plain = -advantages * ratio
    limited = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.maximum(plain, limited), {
        "clipped": (limited > plain).astype(jnp.float32),
        "ratio": jax.lax.stop_gradient(ratio),
    }


def sequence_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    clip_low: Float[Array, ""] | float,
    clip_high: Float[Array, ""] | float,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """GSPO: as `clipped_surrogate` with one ratio a completion, at each of its tokens:

        s_i = (π(y_i)/π_old(y_i))^{1/|y_i|} = exp(mean_t log r_{i,t})

    The advantage has to be the same at all tokens of a completion; with `aggregate(…, "sequence")` it is the source's loss. Since
    s is a mean over tokens, its clip ranges are two or three orders smaller (3e-4 and 4e-4 in the source).

    Source: Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7.
    """
    old = jax.lax.stop_gradient(old_logprobs)
    log_ratio = jnp.where(mask, logprobs - old, 0.0)
    mean = log_ratio.sum(axis=1, keepdims=True) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    whole = jnp.where(mask, old + mean, 0.0)  # log-probs whose ratio to the old ones is s everywhere
    return clipped_surrogate(whole, old_logprobs, advantages, mask, clip_low, clip_high)


def weighted_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    clip_low: Float[Array, ""] | float,
    clip_high: Float[Array, ""] | float,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """CISPO: −sg(min(r, 1 + ε_high)) A log π. Only the weight is clipped, so every token keeps a gradient.

    `clip_low` counts for nothing, as in the source's experiments (no lower bound). TRL's `epsilon_high` is 1 + ε_high.

    Source: MiniMax-M1, arXiv:2506.13585, eq. 4 and 5.
    """
    log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    limit = 1.0 + clip_high
    loss = -jnp.minimum(ratio, limit) * advantages * jnp.where(mask, logprobs, 0.0)
    return loss, {"clipped": (ratio > limit).astype(jnp.float32), "ratio": ratio}


SURROGATES = {"token": clipped_surrogate, "sequence": sequence_surrogate, "weighted": weighted_surrogate}
"""`algorithm.surrogate` → its loss."""


def value_loss(
    values: Float[Array, "B T C"],
    old_values: Float[Array, "B T C"],
    returns: Float[Array, "B T C"],
    clip: Float[Array, ""] | float,
    huber_delta: float | None = None,
) -> Float[Array, "B T C"]:
    """max of the loss of V and of V clipped to old ± clip: ½ e², or Huber's beyond `huber_delta`.

    `clip=inf` is the plain loss. One number a channel: average or weigh them where they are used.
    """
    near = old_values + jnp.clip(values - old_values, -clip, clip)

    def loss(predicted: Array) -> Array:
        if huber_delta is None:
            return optax.losses.squared_error(predicted, returns) / 2
        return optax.losses.huber_loss(predicted, returns, delta=huber_delta)

    return jnp.maximum(loss(values), loss(near))


def kl_estimate(
    logprobs: Float[Array, "B T"], other: Float[Array, "B T"], mask: Bool[Array, "B T"], kind: str = "k1"
) -> Float[Array, "B T"]:
    """Estimate of KL(π‖other) at tokens sampled from π; x = log π − log other.

    k1: x, unbiased, may be negative on a batch. k2: x²/2, biased, gradient that of KL. k3: e^{−x} − 1 + x ≥ 0, unbiased.
    """
    difference = jnp.where(mask, logprobs - other, 0.0)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference**2
    if kind == "k3":
        return jnp.expm1(-difference) + difference
    raise ValueError(f"kl_estimate: kind {kind!r} is none of k1, k2, k3")


def aggregate(
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    how: Aggregation,
    constant: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """Tokens → one number.

    token: mean over all tokens of the batch (DAPO, PPO). sequence: mean over tokens of a completion, then over completions
    (GRPO; favours short answers when they are good and long ones when they are bad). constant: sum over tokens divided by
    `constant`, mean over completions (Dr.GRPO; no preference for a length).
    """
    kept = jnp.where(mask, values, 0.0)
    lengths = mask.sum(axis=1)
    if how == "token":
        return kept.sum() / jnp.maximum(lengths.sum(), 1)
    if how == "sequence":
        return jnp.mean(kept.sum(axis=1) / jnp.maximum(lengths, 1))
    if how == "constant":
        return jnp.mean(kept.sum(axis=1) / constant)
    raise ValueError(f"aggregate: {how!r} is none of token, sequence, constant")


def explained_variance(
    values: Float[Array, "B T C"], returns: Float[Array, "B T C"], mask: Bool[Array, "B T"]
) -> Float[Array, " C"]:
    """1 − Var(returns − values)/Var(returns) of every channel; 0 where the returns do not vary."""
    real = mask[..., None].astype(values.dtype)
    count = jnp.maximum(mask.sum(), 1)

    def variance(x: Array) -> Array:
        mean = jnp.sum(real * x, axis=(0, 1), keepdims=True) / count
        return jnp.sum(real * (x - mean) ** 2, axis=(0, 1)) / count

    total = variance(returns)
    return jnp.where(total > 1e-12, 1.0 - variance(returns - values) / jnp.maximum(total, 1e-12), 0.0)
