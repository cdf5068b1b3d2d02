"""Rules that say what an answer to a question would be worth, behind one interface.

A belief about a person is N(ŵ, H⁻¹); a question is v = Δφ of the pair; an answer follows the annotation mixture
    P(y = 1 | s) = π_G σ(s) + π_N/2 + π_C σ(κc),   s = w·v ~ N(ŵ·v, vᵀH⁻¹v)
(genuine, coin flip, or framed: decided by a cue c that was shown, not by the texts). Rules:

    information   I(y; w) = h(E_s P) − E_s h(P), nats, by one-dimensional quadrature
    d-optimal     ½ log(1 + I(ŝ) vᵀH⁻¹v), nats, I the Fisher information of one answer in s
    pref          σ′(ŝ)² vᵀM⁻¹v,  M = .001·I + Σ_i σ′(ŝ_i) v_i v_iᵀ over the answers given
    random        uniform

The first two do not change when (φ, w) becomes (Aφ, A⁻ᵀw); PReF's does, because .001·I is not a tensor of the
model (there is a test that shows it). A person with many non-attitudes has small gains everywhere: P hardly moves.

Letters in shapes: M candidates, K basis outputs, Q quadrature nodes.
Sources: Lindley 1956 and "BALD", Houlsby et al. 2011, arXiv:1112.5745; Chaloner & Verdinelli 1995;
PReF, arXiv:2503.06358 (rule of the released code).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from rewards.basis.belief import Belief
from rewards.errors import UserError, meant

# The trapezoid rule on ±6 standard deviations: exponentially accurate for a smooth integrand, and evenly
# dense. Gauss–Hermite nodes spread too far to see h(P(s)), which is a bump of width 2, once the margin's
# deviation is 10.
NODES = np.linspace(-6.0, 6.0, 97, dtype=np.float32)
NODE_WEIGHTS = np.exp(-0.5 * NODES**2) / np.sum(np.exp(-0.5 * NODES**2))

PREF_RIDGE = 1e-3


class AnswerModel(NamedTuple):
    """How an answer comes about; numbers, or arrays [M] of one value a candidate. Shares sum to 1.

    Attributes:
      genuine: π_G, share of answers that follow the reward.
      coin: π_N, share of coin flips (a lapse, or no attitude).
      framed: π_C, share that follows the cue.
      pull: κ c of the cue the question will be shown with, > 0 towards the first text.
    """

    genuine: Float[ArrayLike, "*#M"] = 1.0
    coin: Float[ArrayLike, "*#M"] = 0.0
    framed: Float[ArrayLike, "*#M"] = 0.0
    pull: Float[ArrayLike, "*#M"] = 0.0

    @classmethod
    def lapsing(cls, lapse: Float[ArrayLike, ""]) -> "AnswerModel":
        """Only coin flips beside genuine answers: the likelihood of `rewards.basis.likelihood`."""
        return cls(1.0 - lapse, lapse, 0.0 * lapse, 0.0 * lapse)


Rule = Callable[[Belief, Float[Array, "M K"], AnswerModel, Key[Array, ""], Belief], Float[Array, " M"]]
"""Scores of every candidate, larger is better, for a belief, candidates, model, key and the population. Traceable."""


def probability(
    margin: Float[Array, "M Q"], model: AnswerModel
) -> tuple[Float[Array, "M Q"], Float[Array, "M Q"]]:
    """P(y = 1 | s) and P(y = 0 | s), each to full relative accuracy."""
    genuine, coin, framed, pull = (_column(part) for part in model)
    # Both sides from one exponential: this line is most of the time that scoring a pool takes.
    small = jnp.exp(-jnp.abs(margin))
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    up = genuine * jnp.where(margin >= 0, larger, smaller) + 0.5 * coin + framed * jax.nn.sigmoid(pull)
    down = genuine * jnp.where(margin >= 0, smaller, larger) + 0.5 * coin + framed * jax.nn.sigmoid(-pull)
    return up, down


def fisher_information(margin: Float[Array, "M Q"], model: AnswerModel) -> Float[Array, "M Q"]:
    """(dP/ds)² / (P (1 − P)) of one answer; σ′(s) when all answers are genuine."""
    up, down = probability(margin, model)
    slope = _column(model.genuine) * jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    product = up * down
    return jnp.where(product > 0, slope**2 / jnp.where(product > 0, product, 1.0), 0.0)


def information(
    belief: Belief, candidates: Float[ArrayLike, "M K"], model: AnswerModel, key=None, population=None
) -> Float[Array, " M"]:
    """Expected information about w in the answer to each candidate Δφ, nats in [0, log 2]."""
    mean, deviation = belief.margins(candidates)
    up, down = probability(mean[:, None] + deviation[:, None] * NODES, model)
    expected_entropy = _entropy(up, down) @ NODE_WEIGHTS
    return jnp.maximum(_entropy(up @ NODE_WEIGHTS, down @ NODE_WEIGHTS) - expected_entropy, 0.0)


def d_optimal(
    belief: Belief, candidates, model: AnswerModel, key=None, population=None
) -> Float[Array, " M"]:
    """Growth of ½ log det H by the answer, with the curvature at ŵ; nats."""
    mean, deviation = belief.margins(candidates)
    return 0.5 * jnp.log1p(fisher_information(mean[:, None], model)[:, 0] * deviation**2)


def pref(belief: Belief, candidates, model: AnswerModel, key, population: Belief) -> Float[Array, " M"]:
    """PReF's released rule. It knows no population prior: only what the answers say counts."""
    mean = candidates @ belief.mean
    slope = jax.nn.sigmoid(mean) * jax.nn.sigmoid(-mean)
    told = belief.precision - population.precision  # Σ_i I(ŝ_i) v_i v_iᵀ
    matrix = told + PREF_RIDGE * jnp.eye(candidates.shape[1])
    return slope**2 * jnp.sum((candidates @ jnp.linalg.inv(matrix)) * candidates, axis=1)


def random(belief: Belief, candidates, model: AnswerModel, key, population=None) -> Float[Array, " M"]:
    """A uniformly random order: the baseline."""
    return jax.random.uniform(key, (candidates.shape[0],))


RULES: dict[str, Rule] = {
    "information": information,
    "d-optimal": d_optimal,
    "pref": pref,
    "random": random,
}


def rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
      UserError: no such rule; it names the nearest.
    """
    if name not in RULES:
        choice = f"use one of {', '.join(RULES)}"
        raise UserError(f"rule {name!r} is unknown; {meant(name, RULES, choice)}")
    return RULES[name]


def observe(belief: Belief, question: Float[Array, " K"], model: AnswerModel) -> Belief:
    """The belief after a question whose answer is not known yet: same mean, expected precision.

    H ← H + E_s[I(s)] v vᵀ. A batch chosen greedily this way is, for d-optimal, the greedy maximiser of a
    monotone submodular set function, so it is within 1 − 1/e of the best batch (Nemhauser et al. 1978) up to
    the curvature being taken at the present belief.
    """
    mean, deviation = belief.margins(question[None])
    curvature = fisher_information(mean[:, None] + deviation[:, None] * NODES, model)[0] @ NODE_WEIGHTS
    gain = curvature * question[:, None] * question[None, :]
    return Belief.from_precision(belief.mean, belief.precision + gain)


def predicted_accuracy(belief: Belief, pairs: Float[Array, "M K"]) -> Float[Array, ""]:
    """Expected share of `pairs` on which the better-looking text is the one the person prefers.

    mean over v of max(p̄, 1 − p̄), p̄ = E_s σ(s): the predicted accuracy of the belief's own predictions, and so
    the predicted win probability of a best-of-two served from it. Genuine preference is meant, without lapses.
    """
    mean, deviation = belief.margins(pairs)
    p = jax.nn.sigmoid(mean[:, None] + deviation[:, None] * NODES) @ NODE_WEIGHTS
    return jnp.mean(jnp.maximum(p, 1.0 - p))


def accuracy_gain(
    belief: Belief,
    question: Float[Array, " K"],
    pairs: Float[Array, "M K"],
    model: AnswerModel,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Predicted accuracy now, and how much one question is expected to add: Σ_y P(y) A(belief | y) − A(belief).

    For one question `model` holds numbers, not arrays. The belief after each answer is matched in its first two
    moments: with s = w·v and C the covariance, mean + C v (E[s | y] − E s)/var s, and C − C v vᵀ C (var s −
    var[s | y])/(var s)²; the moments of s | y come from the same quadrature. Never negative beyond rounding.
    """
    cov = jnp.asarray(belief.cov)
    belief = Belief.from_cov(belief.mean, cov)
    mean, deviation = belief.margins(question[None])
    mean, deviation = mean[0], deviation[0]
    now = predicted_accuracy(belief, pairs)
    direction = cov @ question
    variance = jnp.maximum(deviation**2, 1e-20)

    def after(likelihood):
        share = likelihood * NODE_WEIGHTS
        total = jnp.sum(share)
        first = jnp.sum(share * NODES) / total
        second = jnp.sum(share * NODES**2) / total - first**2
        new_mean = belief.mean + direction * first * deviation / variance
        new_cov = cov - jnp.outer(direction, direction) * (1.0 - second) / variance
        return total * predicted_accuracy(Belief.from_cov(new_mean, new_cov), pairs)

    up, down = probability((mean + deviation * NODES)[None], model)
    return now, after(up[0]) + after(down[0]) - now


def _entropy(p: Float[Array, "*n"], q: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """−p log p − q log q; a probability that underflows counts 0."""
    tiny = jnp.finfo(jnp.float32).tiny
    return -(p * jnp.log(jnp.maximum(p, tiny)) + q * jnp.log(jnp.maximum(q, tiny)))


def _column(value: Float[ArrayLike, "*#M"]) -> Array:
    """A number, or one value a candidate, against [M, Q]."""
    value = jnp.asarray(value, jnp.float32)
    return value[:, None] if value.ndim else value
