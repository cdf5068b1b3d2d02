"""What keeps a behaviour from being paid for in training itself: penalties, prices, floors, gates.

Pure functions of rewards; `rewards.basis.projection` is the rail on coefficients. A ∈ {0, 1} marks completions that show the
behaviour (say, agreeing with a stance that is wrong), π₀ is the reference policy, β the price of KL.

Shapes: … prompts (or prompts × people), G completions of each, S groups of people.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def exact_penalty(
    reward: Float[Array, "... G"],
    behaves: Bool[Array, "... G"],
    beta: Float[Array, ""] | float,
    log_weight: Float[Array, "... G"] | None = None,
) -> Float[Array, "..."]:
    """λ* of every prompt: the least penalty on A under which the optimum behaves no more than π₀ does.

        λ* = β [log M₁ − log M₀]₊,   M_a = E_{π₀}[exp(r/β) | A = a]

    The optimum of E[r − λA] − β KL(π‖π₀) has odds of A equal to those of π₀ times (M₁/M₀) e^{−λ/β}; λ* makes that at most 1,
    and exactly 1 where it acts (2602.01002, for one prompt and a stated behaviour). M_a is the mean over the G completions of
    that kind; where a prompt has only one kind nothing can be compared, and λ* is 0.

    Args:
      log_weight: what each completion counts for, in logarithms: log π₀/π of samples from another policy π, or log π₀ of a
        fixed list of completions, within which λ* is then exact. None: samples of π₀.
    """
    weight = jnp.zeros(reward.shape, jnp.float32) if log_weight is None else log_weight
    scaled, real = reward / beta, weight > -jnp.inf
    behaves, other = behaves & real, ~behaves & real
    both = behaves.any(axis=-1, keepdims=True) & other.any(axis=-1, keepdims=True)

    def log_mean(which: jax.Array) -> jax.Array:
        own = jnp.where(both, jnp.where(which, weight, -jnp.inf), 0.0)  # a sum over nothing has no gradient
        return jax.nn.logsumexp(own + scaled, axis=-1) - jax.nn.logsumexp(own, axis=-1)

    gap = jnp.where(both[..., 0], log_mean(behaves) - log_mean(other), 0.0)
    return beta * jnp.maximum(gap, 0.0)


def truth_bonus(
    own: Float[Array, "..."], shared: Float[Array, "..."], beta: Float[Array, ""] | float
) -> Float[Array, "..."]:
    """ν = β [logit p̄ − logit p_u]₊ on right answers, so that a person's are right as often as anybody's.

    The optimum of E[r + ν·right] − β KL(π‖π₀) has odds of a right answer e^{ν/β} times those without it: with p_u those of
    that optimum, ν lifts them to p̄ exactly. One-sided, where a penalty on the divergence between people (TriAlign,
    2606.01755) would also pull down whoever is right more often.

    Args:
      own, shared: p_u and p̄, shares of right answers, strictly between 0 and 1.
    """
    gap = jax.scipy.special.logit(shared) - jax.scipy.special.logit(own)
    return beta * jnp.maximum(gap, 0.0)


def honest_disagreement(
    corrects: Float[Array, "..."], confidence: Float[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """r = c − (q − c)²: paid for correcting a wrong stance, and for saying how sure that is.

    c ∈ {0, 1} says whether a completion corrects the asker, q ∈ [0, 1] the confidence that it states; without q only c is
    paid. The second term is Brier's (1950), a proper score: what is expected of it is greatest for q = P(c = 1). Bounded, so that
    no single answer outweighs a person's taste (RLCR, 2507.16806, which finds that an unbounded logarithmic score fails).
    """
    if confidence is None:
        return corrects
    return corrects - (jnp.clip(confidence, 0.0, 1.0) - corrects) ** 2


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
