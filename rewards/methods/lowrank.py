"""The link of all free low-rank models: r_u = w_u · Vᵀx with ridges on both factors.

    penalty = ½ ridge |V|² + ½ user_ridge |W|²

With both positive this is √(ridge · user_ridge) times the nuclear norm of the reward matrix W Vᵀ; with
user_ridge 0 the scale of V can shrink and that of W grow until the ridge means nothing.
"""

from typing import Any

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
    model: Any,
    problem: shared.Problem,
    start: tuple[np.ndarray, np.ndarray],
    user_ridge: float,
    on_round: OnRound | None,
) -> LinearFitted:
    """Lower the objective of `model` over (V, W) from `start`; new people by ridge-MLE.

    Args:
      model: an estimator with kind, lapse, ridge, adapt_ridge and steps.
    """
    params, metrics = shared.minimise(
        LINK,
        dict(zip(("directions", "coef"), start, strict=True)),
        problem.data,
        {"lapse": model.lapse, "ridge": model.ridge, "user_ridge": user_ridge},
        steps=model.steps,
        on_round=on_round,
    )
    return finish(
        model.kind,
        problem,
        params["directions"],
        params["coef"],
        lambda gauge: ridge_rule(gauge, model.adapt_ridge, model.lapse),
        metrics,
    )


def ridge_rule(gauge: Canonical, ridge: float, lapse: float) -> GaussianRule:
    """Ridge-MLE around 0 in the canonical gauge, where an output has variance 1 and a ridge one meaning."""
    num_basis = len(gauge.mean)
    return GaussianRule(np.zeros(num_basis, np.float32), ridge * np.eye(num_basis, dtype=np.float32), lapse)
