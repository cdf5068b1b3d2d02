"""How the price of KL, β, moves during training. State and result are arrays, so a schedule compiles nothing.

fixed     β stays
adaptive  β ← β (1 + clip(KL/target − 1, ±0.2) · min(n/horizon, 1)), n completions in the step   (Ziegler et al. 2019;
          the bound is ours: with more completions than the horizon a step would turn β negative)
target    β ← β exp(gain · clip(KL/target − 1, ±1)): multiplicative, independent of the batch size

β stays within `BETA_RANGE`: as a float32 it would else reach 0 or infinity in a long run whose target is out of reach.
"""

from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from rlhf.run.config.unread import Unread
from rlhf.run.record import record

Controller = Literal["fixed", "adaptive", "target"]
BETA_RANGE = (1e-6, 1e6)


@record
class KLConfig:
    """The price of leaving π_ref, how it moves, and where it is paid."""

    coef: float = Field(
        gt=0,
        le=1e6,
        description="β, price of a nat of KL(π‖π_ref); the temperature of the optimum π_ref·exp(w·φ/β).",
    )
    controller: Controller = Field(
        default="fixed",
        description="fixed: β stays; adaptive (Ziegler et al.) and target: β seeks kl.target_nats.",
    )
    target_nats: float = Field(
        default=6.0, gt=0, le=1e6, description="KL a completion that β seeks (adaptive and target only)."
    )
    horizon: float = Field(
        default=10_000.0,
        gt=0,
        le=1e12,
        description="Completions over which an adaptive β reacts (adaptive only).",
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        default="k1",
        description="Estimate of the KL at a token: x, x²/2 or e^(−x) − 1 + x, x = log π − log π_ref. k1 belongs in "
        "the reward (unbiased), k2 in the loss (k1 there has no gradient on average, k3 that of the other KL).",
    )
    place: Literal["reward", "loss"] = Field(
        default="reward", description="reward: the KL is the last reward channel; loss: a term of the loss."
    )
    stop_nats: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="KL(π_old‖π) a token above which the rest of the iteration's updates are left out; null: never.",
    )

    def unread(self) -> Iterator[Unread]:
        says = f"kl.controller {self.controller}"
        if self.controller == "fixed":
            yield Unread(["target_nats"], "controller", says)
        if self.controller != "adaptive":
            yield Unread(["horizon"], "controller", says)

    @model_validator(mode="after")
    def _estimator_of_its_place(self):
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator k1 in the loss has a gradient of mean zero; choose k2 or k3, or place reward"
            )
        return self


def next_kl_coef(
    kl: KLConfig,
    kl_coef: Float[Array, ""],
    kl_nats: Float[Array, ""],
    *,
    completions: int,
    gain: float = 0.1,
) -> Float[Array, ""]:
    """β for the next step from the mean KL(π‖π_ref) of this one, nats a completion."""
    error = kl_nats / kl.target_nats - 1.0
    if kl.controller == "adaptive":
        share = jnp.minimum(completions / kl.horizon, 1.0)
        return jnp.clip(kl_coef * (1.0 + jnp.clip(error, -0.2, 0.2) * share), *BETA_RANGE)
    if kl.controller == "target":
        return jnp.clip(kl_coef * jnp.exp(gain * jnp.clip(error, -1.0, 1.0)), *BETA_RANGE)
    return kl_coef
