"""One comparison: Bradley–Terry with a lapse rate and ties.

    P(chosen ≻ rejected) = ε/2 + (1 − ε) σ(s),   s = w · Δφ   (nats)

with probability ε the answer is a coin flip. A tie is half an answer either way: y = ½ in
    −log L = −[y log P(s) + (1 − y) log P(−s)].
Everything is written in log space: σ(s) underflows at s ≈ −88 in float32 and a lapse of 0 has log ε = −∞.

Source: Bradley & Terry 1952; the lapse as in psychometric functions (Wichmann & Hill 2001).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def log_probability(margin: Float[ArrayLike, "*n"], lapse: Float[ArrayLike, ""]) -> Float[Array, "*n"]:
    """log P(s), finite for every finite margin; `lapse` in [0, 1) may be traced."""
    margin, lapse = jnp.asarray(margin), jnp.asarray(lapse, jnp.float32)
    coin = jnp.where(lapse > 0, jnp.log(jnp.where(lapse > 0, 0.5 * lapse, 1.0)), -jnp.inf)
    return jnp.logaddexp(coin, jnp.log1p(-lapse) + jax.nn.log_sigmoid(margin))


def negative_log_likelihood(
    margin: Float[ArrayLike, "*#n"], outcome: Float[ArrayLike, "*#n"], lapse: Float[ArrayLike, ""] = 0.0
) -> Float[Array, "..."]:
    """−[y log P(s) + (1 − y) log P(−s)] in nats, one value a comparison; the two arguments broadcast.

    Args:
      margin: s = w · Δφ, chosen minus rejected.
      outcome: y, 1 when `chosen` was preferred, 0 when it was not, 0.5 for a tie.
      lapse: ε, the share of answers that are coin flips.
    """
    margin, outcome = jnp.asarray(margin), jnp.asarray(outcome)
    return -(outcome * log_probability(margin, lapse) + (1.0 - outcome) * log_probability(-margin, lapse))


def score(
    margin: Float[ArrayLike, "*#n"], outcome: Float[ArrayLike, "*#n"], lapse: Float[ArrayLike, ""] = 0.0
) -> Float[Array, "..."]:
    """d log L / ds = y P′/P − (1 − y) P′/Q, Q = P(−s); at ε = 0 this is y − σ(s)."""
    margin, outcome = jnp.asarray(margin), jnp.asarray(outcome)
    genuine, genuine_reverse = _genuine(margin, lapse), _genuine(-margin, lapse)
    up, down = genuine * jax.nn.sigmoid(-margin), genuine_reverse * jax.nn.sigmoid(margin)
    return outcome * up - (1.0 - outcome) * down


def fisher_information(
    margin: Float[ArrayLike, "*n"], lapse: Float[ArrayLike, ""] = 0.0
) -> Float[Array, "*n"]:
    """Expected curvature P′² / (P Q) of −log L in s; at ε = 0 it is σ′(s).

    The observed curvature turns negative once an answer looks like a lapse; the expected one never does,
    so Newton's matrix stays positive definite.
    """
    margin = jnp.asarray(margin)
    slope = jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    return slope * _genuine(margin, lapse) * _genuine(-margin, lapse)


def value_score_information(
    margin: Float[ArrayLike, "*n"], outcome: Float[ArrayLike, "*n"], lapse: Float[ArrayLike, ""] = 0.0
) -> tuple[Float[Array, "*n"], Float[Array, "*n"], Float[Array, "*n"]]:
    """(`negative_log_likelihood`, `score`, `fisher_information`) from one exponential: what Newton needs."""
    margin, outcome = jnp.asarray(margin), jnp.asarray(outcome)
    lapse = jnp.asarray(lapse, jnp.float32)
    small = jnp.exp(-jnp.abs(margin))
    log_normaliser = jnp.log1p(small)
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    up, down = jnp.where(margin >= 0, larger, smaller), jnp.where(margin >= 0, smaller, larger)
    log_up = jnp.minimum(margin, 0.0) - log_normaliser
    log_down = jnp.minimum(-margin, 0.0) - log_normaliser
    lapsing = lapse > 0
    p = jnp.where(lapsing, 0.5 * lapse + (1.0 - lapse) * up, 1.0)  # ≥ ε/2, so its logarithm is safe
    q = jnp.where(lapsing, 0.5 * lapse + (1.0 - lapse) * down, 1.0)
    log_p, log_q = jnp.where(lapsing, jnp.log(p), log_up), jnp.where(lapsing, jnp.log(q), log_down)
    meant, meant_reverse = (
        jnp.where(lapsing, (1.0 - lapse) * up / p, 1.0),
        jnp.where(lapsing, (1.0 - lapse) * down / q, 1.0),
    )
    value = -(outcome * log_p + (1.0 - outcome) * log_q)
    score = outcome * meant * down - (1.0 - outcome) * meant_reverse * up
    return value, score, up * down * meant * meant_reverse


def _genuine(margin: Float[ArrayLike, "*n"], lapse: Float[ArrayLike, ""]) -> Float[Array, "*n"]:
    """(1 − ε) σ(s) / P(s): the probability that an answer `chosen` was meant, not a coin flip."""
    margin, lapse = jnp.asarray(margin), jnp.asarray(lapse, jnp.float32)
    return jnp.exp(jnp.log1p(-lapse) + jax.nn.log_sigmoid(margin) - log_probability(margin, lapse))
