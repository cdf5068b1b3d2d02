"""The link of all free low-rank models: r_u = w_u · Vᵀx with ridges on both factors.

    penalty = ½ ridge |V|² + ½ user_ridge |W|²

With both positive this is √(ridge · user_ridge) times the nuclear norm of the reward matrix W Vᵀ; with
user_ridge 0 the scale of V can shrink and that of W grow until the ridge means nothing.
"""

import jax.numpy as jnp
import numpy as np

from rewards.methods import training as shared
from rewards.methods.base import OnRound
from rewards.methods.linear import Canonical, LinearFitted, finish
from rewards.methods.rules import GaussianRule


def _coefficients(params):
    return params["coef"]


def _penalty(params, scales):
    ridge, user_ridge = scales["ridge"], scales["user_ridge"]
    return 0.5 * ridge * jnp.sum(params["directions"] ** 2) + 0.5 * user_ridge * jnp.sum(params["coef"] ** 2)


LINK = shared.Link(shared.linear_features, _coefficients, _penalty)


def fit_both(
    kind: str,
    settings: shared.Reduced,
    problem: shared.Problem,
    start: tuple[np.ndarray, np.ndarray],
    on_round: OnRound | None,
    *,
    user_ridge: float,
    adapt_ridge: float,
    steps: int,
) -> LinearFitted:
    """Lower the objective over (V, W) from `start` by `steps` iterations; new people by ridge-MLE with `adapt_ridge`."""
    params, metrics = shared.minimise(
        LINK,
        dict(zip(("directions", "coef"), start, strict=True)),
        problem.data,
        {"lapse": settings.lapse, "ridge": settings.ridge, "user_ridge": user_ridge},
        steps=steps,
        on_round=on_round,
    )
    return finish(
        kind,
        problem,
        params["directions"],
        params["coef"],
        lambda gauge: ridge_rule(gauge, adapt_ridge, settings.lapse),
        metrics,
    )


def ridge_rule(gauge: Canonical, ridge: float, lapse: float) -> GaussianRule:
    """Ridge-MLE around 0 in the canonical gauge, where an output has variance 1 and a ridge one meaning."""
    num_basis = len(gauge.mean)
    return GaussianRule(np.zeros(num_basis, np.float32), ridge * np.eye(num_basis, dtype=np.float32), lapse)
