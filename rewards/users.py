"""One person: the Laplace posterior of their coefficients, by damped Newton.

    ŵ = argmin_w  −Σ_i a_i log P(y_i | w·v_i) + ½ (w − μ)ᵀ Σ⁻¹ (w − μ),   v_i = Δφ_i
    H = Σ⁻¹ + Σ_i a_i I(ŵ·v_i) v_i v_iᵀ
and w | answers ≈ N(ŵ, H⁻¹). I(s) is the Fisher information of one answer; without a lapse it is σ′(s).
Without answers this is exactly the prior.

Answers are padded to a few lengths (`BUCKETS`, then powers of four), so a new person or another answer
reuses a compiled program: `laplace._cache_size()` counts them.

Letters in shapes: n answers (padded), K basis outputs, U users, N answers of all users.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rewards import likelihood
from rewards import prior as prior_module
from rewards.errors import UserError
from rewards.types import GroupPrior, UserPosterior

BUCKETS = (16, 64, 256)
MAX_PEOPLE = 1024  # people a call; bounds the padded arrays
MAX_NEWTON = 50
STEP_SIZES = 0.5 ** np.arange(12, dtype=np.float32)


def newton(
    mean: Float[Array, " K"],
    prior_precision: Float[Array, "K K"],
    delta: Float[Array, "n K"],
    outcome: Float[Array, " n"],
    weight: Float[Array, " n"],
    lapse: Float[Array, ""],
) -> tuple[Float[Array, " K"], Float[Array, "K K"]]:
    """ŵ and H of one person; padded answers have weight 0. Traceable, meant to be vmapped.

    Every step takes the largest of 1, ½, ¼, … that lowers the objective: undamped Newton oscillates on
    near-separable answers. It stops when Newton's decrement falls below 1e-10 nats or no step helps.
    """

    def objective(coef):
        deviation = coef - mean
        nll = likelihood.negative_log_likelihood(delta @ coef, outcome, lapse)
        return jnp.sum(weight * nll) + 0.5 * deviation @ prior_precision @ deviation

    def hessian(coef):
        information = weight * likelihood.fisher_information(delta @ coef, lapse)
        return prior_precision + (delta * information[:, None]).T @ delta

    def step(carry):
        coef, _, iteration = carry
        gradient = prior_precision @ (coef - mean) - delta.T @ (
            weight * likelihood.score(delta @ coef, outcome, lapse)
        )
        direction = -jax.scipy.linalg.solve(hessian(coef), gradient, assume_a="pos")
        decrement = -gradient @ direction
        trials = coef + STEP_SIZES[:, None] * direction
        values = jax.vmap(objective)(trials)
        now = objective(coef)
        # Armijo up to float32 rounding of the objective, else the last steps before the optimum are refused.
        enough = values <= now - 1e-4 * STEP_SIZES * decrement + 1e-6 * (1.0 + jnp.abs(now))
        best = jnp.argmax(enough)
        moved = jnp.any(enough) & (decrement > 0)
        done = ~moved | (decrement < 1e-10)
        return jnp.where(moved, trials[best], coef), done, iteration + 1

    def unfinished(carry):
        return ~carry[1] & (carry[2] < MAX_NEWTON)

    coef, _, _ = jax.lax.while_loop(unfinished, step, (mean, jnp.array(False), jnp.array(0)))
    return coef, hessian(coef)


@jax.jit
def laplace(mean, prior_precision, delta, outcome, weight, lapse):
    """`newton` for delta[U, n, K], outcome[U, n], weight[U, n]: the one compiled update of users."""
    one = functools.partial(newton, mean, prior_precision)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(delta, outcome, weight, lapse)


def posterior(
    prior: GroupPrior, delta_features: np.ndarray, outcomes: np.ndarray, *, lapse: float = 0.0
) -> UserPosterior:
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
    return UserPosterior(coef_mean[0], coef_precision[0], len(delta))


def posteriors(
    prior: GroupPrior,
    user_index: np.ndarray,
    delta_features: np.ndarray,
    outcomes: np.ndarray,
    *,
    num_users: int,
    lapse: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Laplace posteriors of many people: coef_mean float32[U, K], coef_precision float32[U, K, K].

    `user_index` int[N] says whose answer each row of `delta_features` is; people without rows get the prior.
    A person's result does not depend on who else is in the call.
    """
    delta = _checked(prior, delta_features, outcomes)
    mean, prior_precision = np.asarray(prior.mean, np.float32), prior_module.precision(prior)
    coef_mean = np.tile(mean, (num_users, 1))
    coef_precision = np.tile(prior_precision, (num_users, 1, 1))
    counts = np.bincount(user_index, minlength=num_users)
    order = np.argsort(user_index, kind="stable")
    start = np.concatenate([[0], np.cumsum(counts)])
    sizes = np.array([bucket(count) for count in counts])
    for size in np.unique(sizes[counts > 0]):
        people = np.flatnonzero((sizes == size) & (counts > 0))
        for group in np.split(people, range(MAX_PEOPLE, len(people), MAX_PEOPLE)):
            rows = [order[start[user] : start[user + 1]] for user in group]
            packed = pack(rows, delta, np.asarray(outcomes, np.float32), int(size))
            result = laplace(mean, prior_precision, *packed, np.float32(lapse))
            coef_mean[group], coef_precision[group] = (np.asarray(part)[: len(group)] for part in result)
    return coef_mean, coef_precision


def pack(
    rows: list[np.ndarray], delta: np.ndarray, outcomes: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pad the rows of each person to `size` answers, and people to a power of two: delta, outcome, weight."""
    people = 1 << (len(rows) - 1).bit_length()
    padded = np.zeros((people, size, delta.shape[1]), np.float32)
    outcome, weight = np.zeros((people, size), np.float32), np.zeros((people, size), np.float32)
    for person, index in enumerate(rows):
        padded[person, : len(index)] = delta[index]
        outcome[person, : len(index)] = outcomes[index]
        weight[person, : len(index)] = 1.0
    return padded, outcome, weight


def bucket(count: int) -> int:
    """The padded length for `count` answers."""
    for size in BUCKETS:
        if count <= size:
            return size
    return 4 ** int(np.ceil(np.log(count) / np.log(4) - 1e-9))


def _checked(prior: GroupPrior, delta_features: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
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
