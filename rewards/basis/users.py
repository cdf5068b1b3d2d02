"""One person: the Laplace posterior of their coefficients, by damped Newton.

    ŵ = argmin_w  −Σ_i a_i log P(y_i | w·v_i) + ½ (w − μ)ᵀ Σ⁻¹ (w − μ),   v_i = Δφ_i
    H = Σ⁻¹ + Σ_i a_i I(ŵ·v_i) v_i v_iᵀ
and w | answers ≈ N(ŵ, H⁻¹). I(s) is the Fisher information of one answer; without a lapse it is σ′(s).
Without answers this is exactly the prior.

Answers are padded to a few lengths (`BUCKETS`, then powers of four), so a new person or another answer
reuses a compiled program: `laplace._cache_size()` counts them.

Letters in shapes: n answers (padded), K basis outputs, U users, N answers of all users.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewards.basis import likelihood
from rewards.basis.belief import Belief
from rewards.errors import UserError

BUCKETS = (16, 64, 256)
MAX_PEOPLE = 1024  # people a call; bounds the padded arrays
MAX_TRIALS = 100  # evaluations of the objective a person
SMALLEST_STEP = 2.0**-12
UNROLLED = 16  # up to this K the linear system is solved by unrolled elimination


def newton(
    mean: Float[Array, " K"],
    prior_precision: Float[Array, "K K"],
    delta: Float[Array, "n K"],
    outcome: Float[Array, " n"],
    weight: Float[Array, " n"],
    lapse: Float[Array, ""],
) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """ŵ and H of one person; padded answers have weight 0. Traceable, meant to be vmapped.

    Every turn of the loop tries one step and costs one evaluation: the full Newton step first, half of it when
    the objective does not fall (undamped Newton oscillates on near-separable answers). Nearly all full steps
    are taken, so a batch of people waits for four to seven evaluations, not for a line search each. Stops when
    Newton's decrement falls below 1e-10 nats (relative, for large objectives) or no step helps.
    """

    def evaluate(coef):
        margin = jnp.sum(delta * coef, axis=-1)
        nll, score, information = likelihood.value_score_information(margin, outcome, lapse)
        pull = prior_precision @ (coef - mean)
        value = jnp.sum(weight * nll) + 0.5 * (coef - mean) @ pull
        gradient = pull - jnp.sum(delta * (weight * score)[:, None], axis=0)
        hessian = prior_precision + (delta * (weight * information)[:, None]).T @ delta
        direction = -solve(hessian, gradient)
        return value, hessian, direction, -gradient @ direction

    def turn(carry):
        coef, (value, hessian, direction, decrement), size, _, trials = carry
        trial = coef + size * direction
        state = evaluate(trial)
        # Armijo up to float32 rounding of the objective, else the last steps before the optimum are refused.
        taken = state[0] <= value - 1e-4 * size * decrement + 1e-6 * (1.0 + jnp.abs(value))
        coef = jnp.where(taken, trial, coef)
        now = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old), state, (value, hessian, direction, decrement)
        )
        size = jnp.where(taken, 1.0, 0.5 * size)
        done = (now[3] < 1e-10 * (1.0 + jnp.abs(now[0]))) | (size < SMALLEST_STEP)
        return coef, now, size, done, trials + 1

    def unfinished(carry):
        return ~carry[3] & (carry[4] < MAX_TRIALS)

    state = evaluate(mean)
    # A gradient of exactly 0 (no answers) must leave the prior's bits alone.
    start = (mean, state, jnp.float32(1.0), ~(state[3] > 0), jnp.array(0))
    coef, (_, hessian, _, _), *_ = jax.lax.while_loop(unfinished, turn, start)
    return coef, hessian


def solve(matrix: Float[Array, "K K"], vector: Float[Array, " K"]) -> Float[Array, " K"]:
    """matrix⁻¹ vector, positive definite. LAPACK is called once a person; for the few outputs of a basis
    Gauss–Jordan elimination (stable here without pivoting) vectorises over people and is three times as fast.
    """
    if matrix.shape[0] > UNROLLED:
        return jax.scipy.linalg.solve(matrix, vector, assume_a="pos")
    table = jnp.concatenate([matrix, vector[:, None]], axis=1)
    for k in range(matrix.shape[0]):
        row = table[k] / table[k, k]
        table = (table - table[:, k, None] * row).at[k].set(row)
    return table[:, -1]


@jax.jit
def laplace(mean, prior_precision, delta, outcome, weight, lapse):
    """`newton` for delta[U, n, K], outcome[U, n], weight[U, n]: the one compiled update of users."""
    one = functools.partial(newton, mean, prior_precision)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(delta, outcome, weight, lapse)


def posterior(
    prior: Belief, delta_features: np.ndarray, outcomes: np.ndarray, *, lapse: float = 0.0
) -> Belief:
    """Laplace posterior of one person.

    Args:
      prior: the population, in the same gauge as the features.
      delta_features: float[n, K], φ(chosen) − φ(rejected) of every answer; n = 0 gives the prior.
      outcomes: float[n], 1 when `chosen` was preferred, 0.5 for a tie, 0 when `rejected` was.
      lapse: share of answers that are coin flips.
    Raises:
      UserError: wrong width, values that are not finite, outcomes outside [0, 1].
    """
    delta = _checked(prior, delta_features, outcomes)
    index = np.zeros(len(delta), np.int32)
    coef_mean, coef_precision = posteriors(prior, index, delta, outcomes, num_users=1, lapse=lapse)
    return Belief.from_precision(coef_mean[0], coef_precision[0], len(delta))


def posteriors(
    prior: Belief,
    user_index: np.ndarray,
    delta_features: np.ndarray,
    outcomes: np.ndarray,
    *,
    num_users: int,
    lapse: float = 0.0,
    weight: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Laplace posteriors of many people: coef_mean float32[U, K], coef_precision float32[U, K, K].

    `user_index` int[N] says whose answer each row of `delta_features` is; people without rows get the prior.
    `weight` float[N] says how much each answer counts, 1 by default.
    A person's result does not depend on who else is in the call.
    """
    delta = _checked(prior, delta_features, outcomes)
    mean, prior_precision = np.asarray(prior.mean, np.float32), prior.precision
    coef_mean = np.tile(mean, (num_users, 1))
    coef_precision = np.tile(prior_precision, (num_users, 1, 1))
    counts = np.bincount(user_index, minlength=num_users)
    order = np.argsort(user_index, kind="stable")
    delta, outcomes = delta[order], np.asarray(outcomes, np.float32)[order]
    weight = None if weight is None else np.asarray(weight, np.float32)[order]
    start = np.concatenate([[0], np.cumsum(counts)])
    sizes = np.array([bucket(count) for count in range(counts.max(initial=0) + 1)])[counts]
    running: collections.deque[tuple[np.ndarray, tuple[Array, Array]]] = collections.deque()

    def collect():
        group, result = running.popleft()
        coef_mean[group], coef_precision[group] = (np.asarray(part)[: len(group)] for part in result)

    for size in np.unique(sizes[counts > 0]):
        people = np.flatnonzero((sizes == size) & (counts > 0))
        if len(people) > MAX_PEOPLE:  # worth a program of its own
            size = 8 * -(-counts[people].max() // 8)
        for group in np.split(people, range(MAX_PEOPLE, len(people), MAX_PEOPLE)):
            packed = pack(start[group], counts[group], delta, outcomes, int(size), weight)
            running.append((group, laplace(mean, prior_precision, *packed, np.float32(lapse))))
            if len(running) > 2:  # the next group is packed while this one is computed
                collect()
    while running:
        collect()
    return coef_mean, coef_precision


def pack(
    start: np.ndarray,
    counts: np.ndarray,
    delta: np.ndarray,
    outcomes: np.ndarray,
    size: int,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows start … start + count of each person, padded to `size` answers, and people to a power of two.

    Returns delta[U, size, K], outcome[U, size] and weight[U, size], zero where padded.
    """
    people = 1 << (len(start) - 1).bit_length()
    present = np.zeros((people, size), bool)
    present[: len(start)] = np.arange(size) < counts[:, None]
    index = np.zeros((people, size), np.int64)
    index[: len(start)] = start[:, None] + np.arange(size)
    index *= present
    mask = present.astype(np.float32)
    weight = mask if weights is None else mask * weights[index]
    return delta[index] * mask[..., None], outcomes[index] * mask, weight


def bucket(count: int) -> int:
    """The padded length for `count` answers."""
    for size in BUCKETS:
        if count <= size:
            return size
    return 4 ** int(np.ceil(np.log(count) / np.log(4) - 1e-9))


def _checked(prior: Belief, delta_features: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    delta, outcomes = np.asarray(delta_features, np.float32), np.asarray(outcomes)
    num_basis = len(prior.mean)
    if delta.size == 0:
        delta = delta.reshape(0, num_basis)
    if delta.ndim != 2 or delta.shape[1] != num_basis or len(outcomes) != len(delta):
        raise UserError(
            f"answers: features of shape {delta.shape} and {len(outcomes)} outcomes do not fit a basis of "
            f"{num_basis} outputs; recompute them with the current reward run"
        )
    if not np.isfinite(delta).all():
        bad = int(np.flatnonzero(~np.isfinite(delta).all(axis=1))[0])
        raise UserError(f"answers: answer {bad} has features that are not finite; check its texts")
    if len(outcomes) and not (np.min(outcomes) >= 0 and np.max(outcomes) <= 1):
        bad = int(np.flatnonzero(~((outcomes >= 0) & (outcomes <= 1)))[0])
        raise UserError(f"answers: answer {bad} has outcome {outcomes[bad]!r}; use 1, 0.5 (tie) or 0")
    return delta
