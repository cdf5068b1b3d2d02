"""One account, two people? Two coefficient vectors against one, with a stated rate of false alarms.

    one:  Π_i P(y_i | w·v_i)                                                        w ~ N(μ, Σ)
    two:  Π_g [λ Π_{i∈g} P(y_i | w_1·v_i) + (1 − λ) Π_{i∈g} P(y_i | w_2·v_i)]       w_1, w_2 ~ N(μ, Σ)

where g are sittings: answers in a row, without a long break, come from one person. Sittings are what makes two people
visible: answer by answer, two opposite tastes look like one weak taste, and hundreds of answers are needed. Both are
fitted by their posterior mode, the second by EM: E, r_g = λ L_1 / (λ L_1 + (1 − λ) L_2); M, a weighted
Bradley–Terry fit each, and λ = (1 + Σ r) / (2 + G). The statistic is the difference of the two log posteriors. The
usual χ² does not hold for mixtures (λ is on the boundary, the labels can be exchanged), so its null distribution is
simulated: people drawn from the posterior under "one" answer the same pairs, and p is the rank of the observed
statistic among theirs. An account of one person is therefore flagged with probability at most `LEVEL`, up to the
population being right; a person whose taste is merely unusual is not.

Letters in shapes: n answers (padded), G sittings, K basis outputs.
Source: parametric bootstrap of the likelihood ratio, McLachlan 1987.
"""

import dataclasses
import datetime
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rewards.basis import likelihood, users
from rewards.basis.belief import Belief

LEVEL = 0.05
SIMULATIONS = 59
RANDOM_STARTS = 3
SHORT, LONG = 8, 25  # rounds of EM of every start, and of the best one
MIN_ANSWERS = 20
BREAK_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class SharedAccount:
    """Whether two people answer under one name.

    Attributes:
      p_value: share of one-person accounts at least as two-sided as this one; flagged when ≤ `LEVEL`.
      gain_nats: log posterior of two less that of one, at their modes.
      share: λ, the share of sittings that are the first's.
      coef: float32[2, K], both people's coefficients, the one with more answers first.
      first: float32[n], probability that each answer is the first person's.
    """

    flagged: bool
    p_value: float
    gain_nats: float
    share: float
    coef: np.ndarray
    first: np.ndarray


def check(
    prior: Belief,
    delta_features: Float[np.ndarray, "n K"],
    outcomes: Float[np.ndarray, " n"],
    *,
    key: Key[Array, ""],
    sitting: Int[np.ndarray, " n"] | None = None,
    lapse: float = 0.0,
) -> SharedAccount | None:
    """Test one account; None with fewer than `MIN_ANSWERS` answers, which cannot tell.

    Args:
      delta_features, outcomes: as in `users.posterior`; ties are simulated at the rate at which they occur.
      key: of starts and simulations.
      sitting: number of the sitting of every answer (`sittings`); by default every answer is its own.
    """
    count = len(outcomes)
    _, group = np.unique(np.arange(count) if sitting is None else sitting, return_inverse=True)
    if count < MIN_ANSWERS:
        return None
    size = users.bucket(count)
    delta = np.zeros((size, len(prior.mean)), np.float32)
    outcome, weight = np.zeros(size, np.float32), np.zeros(size, np.float32)
    delta[:count], outcome[:count], weight[:count] = delta_features, outcomes, 1.0
    groups = np.full(size, size - 1, np.int32)
    groups[:count] = group
    mean, precision = np.float32(prior.mean), prior.precision
    gains, share, coef, first = (
        np.asarray(part)
        for part in _test(mean, precision, delta, outcome, weight, groups, np.float32(lapse), key)
    )
    p_value = float((1 + np.sum(gains[1:] >= gains[0])) / len(gains))
    order = np.array([0, 1]) if share >= 0.5 else np.array([1, 0])
    return SharedAccount(
        flagged=p_value <= LEVEL,
        p_value=p_value,
        gain_nats=float(gains[0]),
        share=float(max(share, 1 - share)),
        coef=coef[order],
        first=(first if share >= 0.5 else 1 - first)[:count],
    )


def sittings(times: list[str]) -> Int[np.ndarray, " n"] | None:
    """Sitting of every answer, from ISO 8601 times: a break of half an hour or a step back in time starts a new one.

    None when that says nothing: everything in one sitting (a file read at once), or a time that cannot be read.
    """
    try:
        seconds = np.array([datetime.datetime.fromisoformat(time).timestamp() for time in times])
    except ValueError:
        return None
    new = np.flatnonzero((np.diff(seconds) > BREAK_SECONDS) | (np.diff(seconds) < 0)) + 1
    return np.searchsorted(new, np.arange(len(times)), side="right") if len(new) else None


def two_posteriors(
    prior: Belief,
    delta_features: np.ndarray,
    outcomes: np.ndarray,
    found: SharedAccount,
    lapse: float = 0.0,
) -> tuple[Belief, Belief]:
    """Laplace posteriors of both, each answer weighted by the probability that it is theirs."""
    delta, outcome = np.asarray(delta_features, np.float32)[None], np.asarray(outcomes, np.float32)[None]
    parts = []
    for weight in (found.first, 1 - found.first):
        mean, precision = users.laplace(
            np.asarray(prior.mean, np.float32),
            prior.precision,
            delta,
            outcome,
            np.asarray(weight, np.float32)[None],
            np.float32(lapse),
        )
        parts.append(
            Belief.from_precision(np.asarray(mean)[0], np.asarray(precision)[0], round(float(weight.sum())))
        )
    return parts[0], parts[1]


@functools.partial(jax.jit, static_argnames=("simulations",))
def _test(mean, precision, delta, outcome, weight, groups, lapse, key, *, simulations=SIMULATIONS):
    """Gains of the account and of `simulations` one-person accounts; λ, coefficients, responsibilities."""
    coef_key, tie_key, answer_key, start_key = jax.random.split(key, 4)
    coef, hessian = users.newton(mean, precision, delta, outcome, weight, lapse)
    root = jnp.linalg.cholesky(jnp.linalg.inv(hessian))
    drawn = coef + jax.random.normal(coef_key, (simulations, len(mean))) @ root.T
    p = jnp.exp(likelihood.log_probability(drawn @ delta.T, lapse))
    simulated = (jax.random.uniform(answer_key, p.shape) < p).astype(jnp.float32)
    ties = jnp.sum(weight * (outcome == 0.5)) / jnp.sum(weight)
    simulated = jnp.where(jax.random.uniform(tie_key, p.shape) < ties, 0.5, simulated)
    accounts = jnp.concatenate([outcome[None], simulated])

    def gain(outcome, key):
        return _gain(mean, precision, delta, outcome, weight, groups, lapse, key)

    gains, shares, coefs, firsts = jax.vmap(gain)(accounts, jax.random.split(start_key, simulations + 1))
    return gains, shares[0], coefs[0], firsts[0]


def _gain(mean, precision, delta, outcome, weight, groups, lapse, key):
    """The best of several EM runs less the one-person fit; λ, coef[2, K], r[n]."""

    def log_prior(coef):
        return -0.5 * (coef - mean) @ precision @ (coef - mean)

    def log_likelihood(coef):
        return -likelihood.negative_log_likelihood(delta @ coef, outcome, lapse)

    def step(coef, weight):
        """One Newton step of a weighted fit from `coef`, halved until the weighted objective does not fall."""
        nll, score, information = likelihood.value_score_information(delta @ coef, outcome, lapse)
        gradient = precision @ (coef - mean) - (weight * score) @ delta
        hessian = precision + (delta * (weight * information)[:, None]).T @ delta
        direction = -users.solve(hessian, gradient)
        trials = coef + jnp.array([1.0, 0.5, 0.25, 0.1])[:, None] * direction
        values = jax.vmap(lambda c: weight @ log_likelihood(c) + log_prior(c))(trials)
        best = jnp.argmax(values)
        return jnp.where(values[best] > log_prior(coef) - weight @ nll, trials[best], coef)

    def by_sitting(values):
        return jax.ops.segment_sum(weight * values, groups, num_segments=len(weight))

    real = by_sitting(jnp.ones_like(weight)) > 0

    def run(state, rounds):
        def round(carry, _):
            first, second, responsibility, _ = carry
            first = step(first, weight * responsibility[groups])
            second = step(second, weight * (1.0 - responsibility[groups]))
            # λ ~ Beta(2, 2): neither person vanishes.
            share = (1.0 + real @ responsibility) / (2.0 + jnp.sum(real))
            log_first = jnp.log(share) + by_sitting(log_likelihood(first))
            log_second = jnp.log1p(-share) + by_sitting(log_likelihood(second))
            responsibility = jax.nn.sigmoid(log_first - log_second)
            value = real @ jnp.logaddexp(log_first, log_second) + log_prior(first) + log_prior(second)
            value += jnp.log(share) + jnp.log1p(-share)
            return (first, second, responsibility, share), value

        state, values = jax.lax.scan(round, state, None, length=rounds)
        return state, values[-1]

    coef, _ = users.newton(mean, precision, delta, outcome, weight, lapse)
    one = weight @ log_likelihood(coef) + log_prior(coef)
    # Starts: the two people differ along one direction of taste, each of the axes or a random one; a sitting is
    # given to the one whom it suits.
    directions = jnp.concatenate([jnp.eye(len(mean)), jax.random.normal(key, (RANDOM_STARTS, len(mean)))])
    sides = jnp.sign(jax.vmap(by_sitting)((outcome - 0.5) * (directions @ delta.T)))
    starts = jax.vmap(lambda side: (coef, coef, 0.5 + 0.4 * side, jnp.float32(0.5)))(sides)
    states, values = jax.vmap(lambda state: run(state, SHORT))(starts)
    best = jnp.argmax(values)
    (first, second, responsibility, share), value = run(jax.tree.map(lambda part: part[best], states), LONG)
    return value - one, share, jnp.stack([first, second]), responsibility[groups]
