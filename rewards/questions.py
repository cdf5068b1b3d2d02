"""Which question to ask next: expected information gain about a person's coefficients.

For a candidate v = Δφ and a belief N(ŵ, H⁻¹), the margin s = w·v is N(ŵᵀv, vᵀH⁻¹v), so
    gain(v) = h(E_s P(s)) − E_s h(P(s)),   h(p) = −p log p − (1 − p) log(1 − p)   (nats)
needs only a one-dimensional quadrature. The lapse is inside P: a coin flip teaches nothing.

Letters in shapes: M candidates, K basis outputs, Q nodes.
Source: Lindley 1956; "BALD", Houlsby et al. 2011, arXiv:1112.5745.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from rewards import likelihood
from rewards.errors import UserError
from rewards.types import UserPosterior

# The trapezoid rule on ±6 standard deviations: exponentially accurate for a smooth integrand, and evenly
# dense. Gauss–Hermite nodes spread too far to see h(P(s)), which is a bump of width 2, once the margin's
# deviation is 10.
NODES = np.linspace(-6.0, 6.0, 97, dtype=np.float32)
NODE_WEIGHTS = np.exp(-0.5 * NODES**2) / np.sum(np.exp(-0.5 * NODES**2))

# Scores closer than this are the same question to us: rounding must not decide between twins.
TIE_NATS = 1e-5


def information_gain(
    coef_mean: Float[ArrayLike, " K"],
    coef_cov: Float[ArrayLike, "K K"],
    candidates: Float[ArrayLike, "M K"],
    lapse: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, " M"]:
    """Expected information about w in the answer to each candidate, nats in [0, log 2]. Traceable."""
    margin_mean = candidates @ coef_mean
    margin_var = jnp.maximum(jnp.sum((candidates @ coef_cov) * candidates, axis=1), 0.0)
    margins = margin_mean[:, None] + jnp.sqrt(margin_var)[:, None] * NODES
    log_p = likelihood.log_probability(margins, lapse)
    log_q = likelihood.log_probability(-margins, lapse)
    expected_entropy = -(jnp.exp(log_p) * log_p + jnp.exp(log_q) * log_q) @ NODE_WEIGHTS
    p, q = jnp.exp(log_p) @ NODE_WEIGHTS, jnp.exp(log_q) @ NODE_WEIGHTS
    entropy = -(jax.scipy.special.xlogy(p, p) + jax.scipy.special.xlogy(q, q))
    return jnp.maximum(entropy - expected_entropy, 0.0)


def best(gains: Float[Array, " M"], allowed: Bool[Array, " M"]) -> Array:
    """Index of the first allowed candidate within `TIE_NATS` of the largest gain. Traceable."""
    gains = jnp.where(allowed, gains, -jnp.inf)
    return jnp.argmax(gains >= jnp.max(gains) - TIE_NATS)


@jax.jit
def _scores(coef_mean, coef_precision, candidates, allowed, lapse):
    cov = jnp.linalg.inv(coef_precision)
    gains = information_gain(coef_mean, cov, candidates, lapse)
    return gains, best(gains, allowed)


def choose(
    posterior: UserPosterior,
    candidates: np.ndarray,
    *,
    allowed: np.ndarray | None = None,
    lapse: float = 0.0,
) -> tuple[int, np.ndarray]:
    """The most informative candidate and the gain of every one, float32[M] in nats.

    Args:
      candidates: float[M, K], Δφ of every possible question.
      allowed: bool[M]; False for what was asked before. None allows all.
    Raises:
      UserError: nothing is left to ask.
    """
    candidates, allowed = _checked(candidates, allowed)
    # Powers of four, so that a growing pool does not compile again and again.
    size = max(64, 4 ** int(np.ceil(np.log(len(candidates)) / np.log(4) - 1e-9)))
    padded = np.zeros((size, candidates.shape[1]), np.float32)
    padded[: len(candidates)] = candidates
    mask = np.zeros(size, bool)
    mask[: len(candidates)] = allowed
    mean, precision = (
        np.asarray(part, np.float32) for part in (posterior.coef_mean, posterior.coef_precision)
    )
    gains, index = _scores(mean, precision, padded, mask, np.float32(lapse))
    return int(index), np.asarray(gains)[: len(candidates)]


def choose_random(key: Key[Array, ""], candidates: np.ndarray, *, allowed: np.ndarray | None = None) -> int:
    """A uniformly random allowed candidate: the baseline for `choose`."""
    _, allowed = _checked(candidates, allowed)
    options = np.flatnonzero(allowed)
    return int(options[int(jax.random.randint(key, (), 0, len(options)))])


def _checked(candidates: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    candidates = np.asarray(candidates, np.float32)
    mask = np.ones(len(candidates), bool) if allowed is None else np.asarray(allowed, bool)
    if not mask.any():
        raise UserError(
            f"questions: nothing left to ask ({len(candidates)} candidates, all used); add pairs of items"
        )
    return candidates, mask
