"""Calibration: what somebody is shown should be mixed as what they like is (Steck 2018, "Calibrated Recommendations").

    C_KL(p, q) = Σ_g p_g log(p_g / q̃_g),   q̃ = (1 − α) q + α p,   α = 0.01;   0 where calibrated

p is the wanted mix over kinds of answers g (formats, viewpoints, …), q the shown one. As a reward it keeps several samples for
one person from all being of the kind that pays most; as a slate it chooses among answers that are there already.

Shapes: … groups, G completions of each, V kinds, N answers to choose from.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from rewards.errors import UserError

ALPHA = 0.01  # of the wanted mix in the shown one, so that C_KL is finite
LARGEST_SHARE = 0.95  # of the mix that is shown without a completion, at least 1/20 is left


def distance(wanted: Float[ArrayLike, "*#b V"], shown: Float[ArrayLike, "*#b V"]) -> Float[Array, "*b"]:
    """C_KL in nats, at least 0."""
    wanted, shown = jnp.asarray(wanted), jnp.asarray(shown)
    mixed = (1.0 - ALPHA) * shown + ALPHA * wanted
    ratio = jnp.where(wanted > 0, wanted, 1.0) / jnp.where(wanted > 0, mixed, 1.0)
    return jnp.sum(jnp.where(wanted > 0, wanted * jnp.log(ratio), 0.0), axis=-1)


def wanted_mix(
    reward: Float[Array, "... G"],
    log_weight: Float[Array, "... G"],
    kinds: Float[Array, "... G V"],
    general: float,
) -> Float[Array, "... V"]:
    """p̄ = (1 − b) p_u + b p_0: what a person would choose, mixed with what π_ref shows anybody.

        p_u(g) = Σ_i ρ_i e^{r_i} k_ig / Σ_i ρ_i e^{r_i}

    with ρ π_ref's weights (`log_weight`) and k_i the kind of completion i. Rewards are nats of choice, so p_u is how often the
    person would choose each kind of what π_ref offers (Luce); a policy with β < 1 shows the favourite kind more often.
    """
    offered = jax.nn.softmax(log_weight, axis=-1)
    chosen = jax.nn.softmax(log_weight + reward, axis=-1)
    mix = (1.0 - general) * chosen + general * offered
    return jnp.einsum("...g,...gv->...v", mix, kinds)


def credit(
    wanted: Float[Array, "... V"], share: Float[Array, "... G"], kinds: Float[Array, "... G V"]
) -> Float[Array, "... G"]:
    """What each completion does for calibration: [C_KL(p̄, q_{−i}) − C_KL(p̄, q)] (1 − s_i)/s_i.

    q is the mix that the policy shows, q_{−i} = (q − s_i k_i)/(1 − s_i) the one without completion i, s_i its share: 1/G of
    samples, its probability in a list. For a small share this is −∂C_KL/∂s_i. A wanted kind that is rare earns, one that is
    too frequent pays; all is about 0 where q = p̄.
    """
    share = jnp.clip(share, 1e-6, LARGEST_SHARE)[..., None]
    shown = jnp.einsum("...g,...gv->...v", share[..., 0], kinds)[..., None, :]
    total = jnp.sum(shown, axis=-1, keepdims=True)
    shown = shown / jnp.where(total > 0, total, 1.0)
    without = jnp.maximum((shown - share * kinds) / (1.0 - share), 0.0)
    without = without / jnp.maximum(jnp.sum(without, axis=-1, keepdims=True), 1e-9)
    gap = distance(wanted[..., None, :], without) - distance(wanted[..., None, :], shown)
    return gap * ((1.0 - share) / share)[..., 0]


def as_kinds(values: Float[Array, "... G V"]) -> Float[Array, "... G V"]:
    """Numbers of checks as a distribution over kinds: negative ones count 0; all 0, where a completion is of none."""
    values = jnp.maximum(values, 0.0)
    total = jnp.sum(values, axis=-1, keepdims=True)
    return values / jnp.where(total > 0, total, 1.0)


def greedy_slate(
    score: Float[np.ndarray, " N"],
    kinds: Float[np.ndarray, "N V"],
    wanted: Float[np.ndarray, " V"],
    size: int,
    trade: float = 0.5,
) -> list[int]:
    """Indices of `size` answers that maximise (1 − λ) mean score − λ C_KL(wanted, their mix), one after another.

    The greedy choice (Steck 2018; within 1 − 1/e of the best set, as is cited there). λ = `trade`: 0 takes the best
    answers, 1 the best mix.

    Raises:
      UserError: fewer answers than wanted, or λ outside of [0, 1].
    """
    score, kinds, wanted = (np.asarray(part, np.float64) for part in (score, kinds, wanted))
    if not 1 <= size <= len(score):
        raise UserError(f"slate: size {size} of {len(score)} answers; choose between 1 and {len(score)}")
    if not 0.0 <= trade <= 1.0:
        raise UserError(f"slate: trade is {trade!r}, must be between 0 (score alone) and 1 (mix alone)")
    chosen: list[int] = []
    total, value = np.zeros(kinds.shape[1]), 0.0
    left = np.ones(len(score), bool)
    for number in range(1, size + 1):
        shown = (total + kinds) / number
        mixed = (1.0 - ALPHA) * shown + ALPHA * wanted
        known = wanted > 0
        nats = np.sum(wanted[known] * np.log(wanted[known] / mixed[:, known]), axis=1)
        worth = (1.0 - trade) * (value + score) / size - trade * nats
        best = int(np.argmax(np.where(left, worth, -np.inf)))
        chosen.append(best)
        left[best] = False
        total, value = total + kinds[best], value + score[best]
    return chosen
