"""The compiled part of the basis fit: one round of the joint estimation of φ and w.

In the gauge of the round, with reduced embeddings x[I, P], directions V[P, K] and φ = Vᵀx, every person has a
Gaussian belief N(m_u, C_u), m_u = μ + L z_u, Σ = L Lᵀ. A round lowers, over V, μ and all z_u together,

    F = Σ_n a_n E_{s ~ N(m_u·Δφ_n, Δφ_nᵀ C_u Δφ_n)}[−log P(y_n | s)] + ½ Σ_u |z_u|²
        + ½ λ (|V μ|² + |V L|²)

and then sets C_u = (Σ⁻¹ + Σ_n a_n E[I(s)] Δφ Δφᵀ)⁻¹. With C_u = 0, as in the first round, F is the joint MAP
objective. With C_u > 0 it is the same objective with the w_u averaged out, which is what keeps V from fitting
the noise of people with few answers. The ridge is on the reward a typical person gets, not on V, so it cannot
be undone by rescaling (V, w).

Letters in shapes: I items, P reduced width, K basis outputs, U users, N comparisons, Q quadrature nodes.
Source: Gaussian variational EM (Opper & Archambeau 2009) for a logistic factor model.
"""

import functools
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from rewards.basis import likelihood, users
from rewards.basis.belief import Belief

NUM_NODES = 8
_x, _w = np.polynomial.hermite_e.hermegauss(NUM_NODES)
NODES, NODE_WEIGHTS = _x.astype(np.float32), (_w / _w.sum()).astype(np.float32)

Kind = TypeVar("Kind", Array, np.ndarray)
"""Where the arrays of a record lie: on the device, or on the host."""


class Comparisons(NamedTuple, Generic[Kind]):
    """Training data; `weight` is 0 for comparisons left out."""

    items: Float[Kind, "I P"]
    user: Int[Kind, " N"]
    chosen: Int[Kind, " N"]
    rejected: Int[Kind, " N"]
    outcome: Float[Kind, " N"]
    weight: Float[Kind, " N"]


class RoundState(NamedTuple, Generic[Kind]):
    """What one round hands to the next."""

    directions: Float[Kind, "P K"]
    mean: Float[Kind, " K"]
    cov: Float[Kind, "K K"]
    coef_mean: Float[Kind, "U K"]
    coef_cov: Float[Kind, "U K K"]


def expected_loss(
    margin_mean: Float[Array, " N"],
    margin_var: Float[Array, " N"],
    outcome: Float[ArrayLike, " N"],
    lapse: Float[ArrayLike, ""],
) -> Float[Array, " N"]:
    """E[−log P(y | s)] over s ~ N(mean, var), by Gauss–Hermite quadrature."""
    # sqrt has no gradient at 0, where the first round starts.
    margins = margin_mean[:, None] + jnp.sqrt(margin_var + 1e-8)[:, None] * NODES
    return likelihood.negative_log_likelihood(margins, jnp.asarray(outcome)[:, None], lapse) @ NODE_WEIGHTS


@jax.jit
def predictive_loss(
    margin_mean: Float[Array, " N"],
    margin_var: Float[Array, " N"],
    outcome: Float[Array, " N"],
    lapse: Float[Array, ""],
) -> Float[Array, " N"]:
    """−y log E[P(s)] − (1 − y) log E[P(−s)] over s ~ N(mean, var): loss of a doubtful prediction."""
    margins = margin_mean[:, None] + jnp.sqrt(jnp.maximum(margin_var, 0.0))[:, None] * NODES
    log_p = jax.nn.logsumexp(likelihood.log_probability(margins, lapse), axis=1, b=NODE_WEIGHTS)
    log_q = jax.nn.logsumexp(likelihood.log_probability(-margins, lapse), axis=1, b=NODE_WEIGHTS)
    return -(outcome * log_p + (1.0 - outcome) * log_q)


def _margins(directions, coef, state: RoundState[Array], data: Comparisons[Array]):
    """Δφ[N, K] of every comparison, and mean and variance of its margin under N(coef_u, C_u)."""
    phi = data.items @ directions
    delta = phi[data.chosen] - phi[data.rejected]
    mean = jnp.sum(coef[data.user] * delta, axis=1)
    return delta, mean, jnp.einsum("nk,nkl,nl->n", delta, state.coef_cov[data.user], delta)


def objective(
    params,
    state: RoundState[Array],
    data: Comparisons[Array],
    ridge: Float[Array, ""],
    lapse: Float[Array, ""],
):
    """F above; `params` is (V, μ, z)."""
    directions, mean, z = params
    root = jnp.linalg.cholesky(state.cov)
    coef = mean + z @ root.T
    _, margin_mean, margin_var = _margins(directions, coef, state, data)
    fit = jnp.sum(data.weight * expected_loss(margin_mean, margin_var, data.outcome, lapse))
    size = jnp.sum((directions @ mean) ** 2) + jnp.sum((directions @ root) ** 2)
    return fit + 0.5 * jnp.sum(z**2) + 0.5 * ridge * size


@functools.partial(jax.jit, static_argnames=("steps",))
def optimise(
    state: RoundState[Array],
    data: Comparisons[Array],
    ridge: Float[Array, ""],
    lapse: Float[Array, ""],
    *,
    steps: int,
) -> tuple[RoundState[Array], dict[str, Array]]:
    """`steps` iterations of L-BFGS on F, then the covariance of every belief. Returns (state, metrics)."""
    root = jnp.linalg.cholesky(state.cov)
    z = jax.scipy.linalg.solve_triangular(root, (state.coef_mean - state.mean).T, lower=True).T
    params = (state.directions, state.mean, z)

    def loss(params):
        return objective(params, state, data, ridge, lapse)

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, solver_state = carry
        value, grad = value_and_grad(params, state=solver_state)
        updates, solver_state = solver.update(
            grad, solver_state, params, value=value, grad=grad, value_fn=loss
        )
        return (optax.apply_updates(params, updates), solver_state), value

    (params, _), values = jax.lax.scan(step, (params, solver.init(params)), None, length=steps)
    directions, mean, z = jax.tree.leaves(params)
    coef = mean + z @ root.T
    coef_cov, fit = _beliefs(directions, coef, state, data, lapse)
    loss_nats = jnp.sum(data.weight * fit) / jnp.sum(data.weight)
    new = RoundState(directions, mean, state.cov, coef, coef_cov)
    return new, {"objective": loss(params), "loss_nats": loss_nats, "start": jnp.asarray(values)[0]}


def _beliefs(directions, coef, state: RoundState[Array], data: Comparisons[Array], lapse: Float[Array, ""]):
    """C_u of every person, and the expected loss of every comparison under the belief before."""
    delta, margin_mean, margin_var = _margins(directions, coef, state, data)
    margins = margin_mean[:, None] + jnp.sqrt(margin_var)[:, None] * NODES
    curvature = data.weight * (likelihood.fisher_information(margins, lapse) @ NODE_WEIGHTS)
    outer = curvature[:, None, None] * delta[:, :, None] * delta[:, None, :]
    num_users = coef.shape[0]
    information = jax.ops.segment_sum(outer, data.user, num_segments=num_users)
    coef_cov = jnp.linalg.inv(jnp.linalg.inv(state.cov) + information)
    return coef_cov, expected_loss(margin_mean, margin_var, data.outcome, lapse)


def initial_state(
    data: Comparisons[Array], answers: np.ndarray, num_basis: int, ridge: float, lapse: float
) -> RoundState[np.ndarray]:
    """Start: the pooled direction θ, then the main directions in which people deviate from it.

    One scoring step from θ gives every person's deviation, the label-weighted mean of their residuals in the
    metric of the pooled Hessian, δ_u ≈ H̄⁻¹ Σ_n a_n (y_n − P(s_n)) Δx_n / n_u; its right singular vectors,
    people weighted by √n_u, are the directions. With K = 1 there is no room for both: then the SVD is of θ
    + δ_u, uncentred, so that a population of opposite tastes still finds its axis.
    """
    items, user = np.asarray(data.items, np.float64), np.asarray(data.user)
    delta = items[np.asarray(data.chosen)] - items[np.asarray(data.rejected)]
    pooled = pooled_direction(delta, np.asarray(data.outcome), np.asarray(data.weight), ridge, lapse)
    theta = pooled.astype(np.float64)
    margin = (delta @ theta).astype(np.float32)
    weight = np.asarray(data.weight, np.float64)
    residual = weight * np.asarray(likelihood.score(margin, data.outcome, lapse))
    curvature = weight * np.asarray(likelihood.fisher_information(margin, lapse))
    hessian = (delta * curvature[:, None]).T @ delta / weight.sum()
    hessian += 0.02 * np.trace(hessian) / len(theta) * np.eye(len(theta))
    pull = np.zeros((len(answers), len(theta)))
    np.add.at(pull, user, residual[:, None] * delta)
    weighted = np.linalg.solve(hessian, pull.T).T / np.sqrt(np.maximum(answers, 1.0))[:, None]
    if num_basis == 1:
        directions = _leading(weighted + np.sqrt(answers)[:, None] * theta, 1)
    else:
        axis = theta / max(np.linalg.norm(theta), 1e-12)
        others = _leading(weighted - np.outer(weighted @ axis, axis), num_basis - 1)
        directions = np.linalg.qr(np.concatenate([axis[:, None], others], axis=1))[0]
        directions[:, 0] *= np.sign(directions[:, 0] @ axis) or 1.0
    mean = directions.T @ theta
    parts = (
        directions,
        mean,
        np.eye(num_basis),
        np.tile(mean, (len(answers), 1)),
        np.zeros((len(answers), num_basis, num_basis)),
    )
    return RoundState(*(np.asarray(part, np.float32) for part in parts))


def pooled_direction(
    delta: Float[np.ndarray, "N P"], outcome: np.ndarray, weight: np.ndarray, ridge: float, lapse: float
) -> np.ndarray:
    """One θ[P] for everybody: ridge logistic regression, float32. The same Newton as a person's posterior."""
    width = delta.shape[1]
    prior = Belief.from_cov(np.zeros(width, np.float32), np.eye(width, dtype=np.float32) / ridge)
    kept = weight > 0
    everybody = np.zeros(int(kept.sum()), np.int32)
    coef_mean, _ = users.posteriors(
        prior, everybody, delta[kept], outcome[kept], num_users=1, lapse=lapse, weight=weight[kept]
    )
    return coef_mean[0]


def _leading(rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` right singular vectors of rows[U, P] as columns, from the P × P moments."""
    _, _, vectors = np.linalg.svd(rows.T @ rows)
    return vectors[:count].T
