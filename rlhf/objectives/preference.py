"""Losses of supervised fine-tuning and of the DPO family: log-probs in, per-example losses out.

Nothing here averages over a batch or knows a model. β is `dpo_beta`, h = β·(Δlog π − Δlog π_ref) the margin of the
implicit reward, Δ chosen − rejected, all in nats.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def soft_label(h: Float[Array, "*n"], target_margin: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """−t log σ(h) − (1−t) log σ(−h) with t = σ(w·Δφ): the labels a person with coefficients w would give on average.

    Minimised at h = w·Δφ; its gradient vanishes where both saturate, so strong tastes are learned last.
    """
    t = jax.nn.sigmoid(target_margin)
    return -t * jax.nn.log_sigmoid(h) - (1.0 - t) * jax.nn.log_sigmoid(-h)


def regression(h: Float[Array, "*n"], target_margin: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """(h − w·Δφ)², in reward units squared: keeps the strength of a taste (REBEL, arXiv:2404.16767, offline)."""
    return jnp.square(h - target_margin)


def dpo(h: Float[Array, "*n"], label_smoothing: float | Float[Array, ""] = 0.0) -> Float[Array, "*n"]:
    """−(1−ε) log σ(h) − ε log σ(−h); ε = 0 is DPO (Rafailov 2023, arXiv:2305.18290, Eq. 7), ε > 0 cDPO (Mitchell 2023)."""
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(h) - label_smoothing * jax.nn.log_sigmoid(-h)


def ipo(margin: Float[Array, "*n"], dpo_beta: float | Float[Array, ""]) -> Float[Array, "*n"]:
    """(Δlog(π/π_ref) − 1/(2β))² (Azar 2023, arXiv:2310.12036, Eq. 17; β is the paper's τ).

    `margin` is not multiplied by β. The paper sums log-probs over the tokens; TRL divides by the lengths first.
    """
    return jnp.square(margin - 1.0 / (2.0 * dpo_beta))


def simpo(
    margin: Float[Array, "*n"], dpo_beta: float | Float[Array, ""], gamma: float | Float[Array, ""]
) -> Float[Array, "*n"]:
    """−log σ(β·Δ(log π / |y|) − γ), no reference (Meng 2024, arXiv:2405.14734, Eq. 6; γ is the target margin)."""
    return -jax.nn.log_sigmoid(dpo_beta * margin - gamma)
