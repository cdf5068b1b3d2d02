"""How the price of KL, β, moves during training. State and result are arrays, so a schedule compiles nothing.

fixed     β stays
adaptive  β ← β (1 + clip(KL/target − 1, ±0.2) · n/horizon), n completions in the step   (Ziegler et al. 2019)
target    β ← β exp(gain · clip(KL/target − 1, ±1)): multiplicative, independent of the batch size
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Controller = Literal["fixed", "adaptive", "target"]


def next_kl_coef(
    kind: Controller,
    kl_coef: Float[Array, ""],
    kl_nats: Float[Array, ""],
    target_nats: Float[Array, ""] | float,
    *,
    completions: int,
    horizon: float = 10_000.0,
    gain: float = 0.1,
) -> Float[Array, ""]:
    """β for the next step from the mean KL(π‖π_ref) of this one, nats a completion."""
    error = kl_nats / target_nats - 1.0
    if kind == "fixed":
        return kl_coef
    if kind == "adaptive":
        return kl_coef * (1.0 + jnp.clip(error, -0.2, 0.2) * completions / horizon)
    if kind == "target":
        return kl_coef * jnp.exp(gain * jnp.clip(error, -1.0, 1.0))
    raise ValueError(f"kl controller: {kind!r} is none of fixed, adaptive, target")
