"""Curiosity: a reward for turns that teach the policy who it is talking to, paid as a change of potential.

    r_t = γ Φ(b_{t+1}) − Φ(b_t),   b_t = N(m_t, S_t) the belief about w_u after t answers

A difference of potentials cannot be farmed by going on for longer. With Φ = 0 at the end of a dialogue the turn rewards
add up to −Φ(b_0) whatever was asked: every policy gains the same, the best one stays the best, and only credit moves, to the
turns that earned it. Without that closing term they add up to γ^N Φ(b_N) − Φ(b_0): knowing the person is then itself paid.

Potentials:
    log_accuracy     log N(w*; m, S)                where w* is known: simulated people, in training (default)
    expected_regret  −E_w regret of choosing by m   where it is not: the value of information, in units of reward

Entropy is no potential here. −H(b) pays for being sure, not for being right: a leading question, which gets the answer
it suggests, makes a belief sure of anything. `scripts/experiments/curiosity.py` shows that, and that expected regret is no
safer as long as the belief takes leading answers at face value: use it with an `AnswerModel` that knows better.

The belief is updated under the annotation mixture (`rewards.people.acquisition.AnswerModel`), which knows that an answer to a
leading question says little. That likelihood is not log-concave, so an answer is taken in by matching the belief's first
two moments along the question (assumed-density filtering), exact for one answer; a Laplace posterior N(ŵ, H⁻¹) of
`rewards.basis.users` is a belief as good, and every potential takes it.

Shapes: … any leading axes, K basis outputs, R reference pairs, N turns, T token slots.
Sources: Ng, Harada & Russell 1999 (potential-based shaping); CURIO, arXiv:2504.03206 (potentials on a belief about the
person; rewards without the true person make policies controlling).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rewards.basis.belief import Belief
from rewards.people.acquisition import NODE_WEIGHTS, NODES, AnswerModel, probability

SMALLEST_VARIANCE = 1e-12


def learn(
    belief: Belief, question: Float[Array, " K"], answer: Float[ArrayLike, ""], model: AnswerModel
) -> Belief:
    """The belief after one answer, moments matched along the question; for one person, meant to be vmapped.

    With s = w·v ~ N(m·v, vᵀSv) and the likelihood L of the answer, E[s] and Var[s] under N·L by quadrature give
        m′ = m + S v (E[s | y] − m·v)/vᵀSv,   S′ = S − S v vᵀS (1 − Var[s | y]/vᵀSv)/vᵀSv
    which is the exact mean and covariance of w | y.

    Args:
      question: v = Δφ of the pair. answer: 1 when the first was preferred, 0 when the second was.
      model: how the answer is believed to have come about; numbers.
    """
    mean, cov = jnp.asarray(belief.mean), jnp.asarray(belief.cov)
    direction = cov @ question
    variance = jnp.maximum(question @ direction, SMALLEST_VARIANCE)
    deviation = jnp.sqrt(variance)
    up, down = probability((mean @ question + deviation * NODES)[None], model)
    share = (answer * up[0] + (1.0 - answer) * down[0]) * NODE_WEIGHTS
    share = share / jnp.sum(share)
    first = jnp.sum(share * NODES)  # in standard deviations of s
    second = jnp.sum(share * (NODES - first) ** 2)
    mean = mean + direction * first / deviation
    cov = cov - jnp.outer(direction, direction) * (1.0 - second) / variance
    return Belief.from_cov(mean, 0.5 * (cov + cov.T))


def restrict(belief: Belief, directions: Float[Array, "D K"]) -> Belief:
    """The belief about D directions a·w alone: potentials of it pay nothing for what lies off them.

    For locked and sensitive directions: give a basis of what may be learned.
    """
    return Belief.from_cov(
        jnp.einsum("dk,...k->...d", directions, belief.mean),
        jnp.einsum("dk,...kl,el->...de", directions, belief.cov, directions),
    )


def log_accuracy(belief: Belief, coef: Float[Array, "*n K"]) -> Float[Array, "*n"]:
    """log N(w*; m, S), nats: how probable the belief holds the person it is talking to. Being sure and wrong costs."""
    squared, log_det = distance(belief, coef)
    return -0.5 * (squared + log_det + coef.shape[-1] * jnp.log(2.0 * jnp.pi))


def distance(belief: Belief, coef: Float[Array, "*n K"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(w − m)ᵀ S⁻¹ (w − m) and log det S, by elimination unrolled over the few coefficients.

    LAPACK is called once a person; elimination vectorises over people (and needs no pivots here), as in `users.solve`.
    """
    table = jnp.concatenate([belief.cov, (coef - belief.mean)[..., None]], axis=-1)
    squared = log_det = jnp.zeros(table.shape[:-2])
    for k in range(coef.shape[-1]):
        pivot = table[..., k, k]
        squared = squared + table[..., k, -1] ** 2 / pivot
        log_det = log_det + jnp.log(pivot)
        share = table[..., :, k] / pivot[..., None]
        table = table - share[..., :, None] * table[..., k, None, :]
    return squared, log_det


def expected_regret(belief: Belief, pairs: Float[Array, "R K"]) -> Float[Array, "*n"]:
    """−E_w of what choosing by m loses against choosing by w, mean over pairs, units of reward; ≤ 0.

    For s = w·v ~ N(a, b²) and the choice by a, the loss is E max(s, 0) − max(a, 0) = b n(a/b) − |a| N(−|a|/b), with n
    and N the standard normal density and distribution. No true person is needed.
    """
    margin = belief.mean @ pairs.T
    spread = jnp.sqrt(
        jnp.maximum(jnp.einsum("rk,...kl,rl->...r", pairs, belief.cov, pairs), SMALLEST_VARIANCE)
    )
    far = jnp.abs(margin) / spread
    loss = spread * jax.scipy.stats.norm.pdf(far) - jnp.abs(margin) * jax.scipy.stats.norm.cdf(-far)
    return -jnp.mean(loss, axis=-1)


def turn_rewards(
    potentials: Float[Array, "*n M"],
    discount: Float[ArrayLike, ""],
    turns: Int[Array, "*n"] | int,
    *,
    closed: bool,
) -> Float[Array, "*n N"]:
    """γ Φ(b_{t+1}) − Φ(b_t) of every turn, 0 after the last.

    Args:
      potentials: Φ(b_0) … Φ(b_N), M = N + 1.
      turns: how many were taken; at most N.
      closed: Φ = 0 after the last turn. Then Σ_t γ^t r_t = −Φ(b_0) exactly, for every dialogue.
    """
    now, later = potentials[..., :-1], potentials[..., 1:]
    turn = jnp.arange(now.shape[-1])
    last = jnp.asarray(turns)[..., None]
    if closed:
        later = jnp.where(turn == last - 1, 0.0, later)
    return jnp.where(turn < last, discount * later - now, 0.0)


def at_turn_ends(
    rewards: Float[Array, "B N"], turn: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Turn rewards as token rewards: each at the last token of its turn, as `rlhf.train.rl.update` takes them (one output).

    Args:
      turn: number of the turn that every token belongs to, from 0, not falling. mask: the policy's own tokens.
    """
    number = jnp.where(mask, turn, -1)
    # The largest slot of every turn, by turn; turns without a token place nothing.
    slot = jnp.arange(turn.shape[1])
    ends = jnp.max(jnp.where(number[:, None, :] == jnp.arange(rewards.shape[1])[:, None], slot, -1), axis=-1)
    return jnp.einsum("bn,bnt->bt", rewards, (ends[..., None] == slot).astype(rewards.dtype))
