"""Losses of supervised fine-tuning and of the DPO family: log-probs in, per-example losses out.

Nothing here averages over a batch or knows a model. β is `dpo_beta`, h = β·(Δlog π − Δlog π_ref) the margin of the
implicit reward, Δ chosen − rejected, all in nats.
"""

from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from rlhf.run.config.unread import Unread
from rlhf.run.record import record


@record
class PreferenceLossConfig:
    """Which member of the DPO family, and its numbers."""

    kind: Literal["soft", "regression", "observed", "dpo", "ipo", "cdpo", "simpo"] = Field(
        default="soft",
        description="soft: target σ(w·Δφ); regression: (h − w·Δφ)²; observed: the person's own label; "
        "dpo, ipo, cdpo, simpo: one policy for all, without users.",
    )
    dpo_beta: float = Field(
        default=0.1,
        gt=0,
        le=1e6,
        description="Temperature β: h = β · (log-ratio margin against the reference).",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Assumed share of flipped labels (observed, cdpo); 0 means none.",
    )
    annotation: Literal["none", "mixture"] = Field(
        default="none",
        description="mixture: people's own labels count by how genuine they look (order, frame, repeats), with soft "
        "labels; needs `rewards`. Not for soft and regression, whose targets come from the coefficients.",
    )
    simpo_gamma: float = Field(
        default=0.5, ge=0, le=1e6, description="Target margin γ in reward units (simpo only)."
    )
    length_normalise: bool = Field(
        default=False, description="Divide log-probs by the completion's length; simpo always does."
    )
    nll_coef: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Weight of a supervised term on the row's completions, which keeps probability from "
        "draining out of both sides of a pair; 0 means none, 1 is usual.",
    )

    @property
    def personal(self) -> bool:
        """Whether it needs the coefficients of people."""
        return self.kind in ("soft", "regression", "observed")

    def unread(self) -> Iterator[Unread]:
        says = f"loss.kind {self.kind}"
        if self.kind != "simpo":
            yield Unread(["simpo_gamma"], "kind", says)
        if self.kind not in ("observed", "cdpo"):
            yield Unread(["label_smoothing"], "kind", says)


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
