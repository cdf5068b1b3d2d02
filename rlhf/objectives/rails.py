"""What keeps a behaviour from being paid for in training itself: penalties, prices, floors, gates.

Pure functions of rewards; `rewards.basis.projection` is the rail on coefficients. A ∈ {0, 1} marks completions that show the
behaviour (say, agreeing with a stance that is wrong), π₀ is the reference policy, β the price of KL.

Shapes: … prompts (or prompts × people), G completions of each, S groups of people.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def exact_penalty(
    reward: Float[Array, "... G"], behaves: Bool[Array, "... G"], beta: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """λ* of every prompt: the least penalty on A under which the optimum behaves no more than π₀ does.

        λ* = β [log M₁ − log M₀]₊,   M_a = E_{π₀}[exp(r/β) | A = a]

    The optimum of E[r − λA] − β KL(π‖π₀) has odds of A equal to those of π₀ times (M₁/M₀) e^{−λ/β}; λ* makes that at most 1,
    and exactly 1 where it acts (2602.01002, for one prompt and a stated behaviour). M_a is the mean over the G samples of π₀
    of that kind; where a prompt has only one kind nothing can be compared, and λ* is 0.
    """
    scaled = reward / beta

    def log_mean(which: jax.Array) -> jax.Array:
        total = jax.nn.logsumexp(jnp.where(which, scaled, -jnp.inf), axis=-1)
        return total - jnp.log(jnp.maximum(which.sum(axis=-1), 1))

    both = behaves.any(axis=-1) & ~behaves.all(axis=-1)
    gap = jnp.where(both, log_mean(behaves), 0.0) - jnp.where(both, log_mean(~behaves), 0.0)
    return beta * jnp.maximum(gap, 0.0)


def dual_ascent(
    price: Float[Array, "..."],
    measured: Float[Array, "..."],
    allowed: Float[Array, "..."] | float,
    rate: Float[Array, ""] | float,
) -> Float[Array, "..."]:
    """λ ← [λ + rate (measured − allowed)]₊: the price of E[A] ≤ allowed where λ* cannot be estimated from samples.

    An aggregate floor E[r_μ] ≥ E_{π₀}[r_μ] − ε is the same with measured = −E[r_μ] and allowed = ε − E_{π₀}[r_μ].
    """
    return jnp.maximum(price + rate * (measured - allowed), 0.0)


def worst_group_weights(
    weights: Float[Array, " S"], utility: Float[Array, " S"], rate: Float[Array, ""] | float
) -> Float[Array, " S"]:
    """q ∝ q exp(−rate · U): exponentiated gradient on max_π min_s U_s (Sagawa et al. 2020; MaxMin-RLHF, 2402.08925)."""
    return jax.nn.softmax(jnp.log(weights) - rate * utility)


def gated(
    reward: Float[Array, "... G"], passes: Bool[Array, "... G"], refused: Float[Array, ""] | float
) -> tuple[Float[Array, "... G"], Bool[Array, "..."]]:
    """Rewards under hard checks, and which groups may be learned from.

        r′ = g r + (1 − g) · min(refused, the least reward of the group)

    so that no reward, however high, makes up for a failed check; a group in which nothing passes is not learned from
    (rubric gates of DRO, 2506.13351). `refused` is what a failed check costs besides.
    """
    least = jnp.minimum(reward.min(axis=-1, keepdims=True), refused)
    return jnp.where(passes, reward, least), passes.any(axis=-1)
