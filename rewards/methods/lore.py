"""LoRe: a few shared reward directions, everybody a mixture of them.

    r_u(x, y) = a_u · Vᵀx,  a_u on the simplex (softmax of logits);  joint likelihood over V and the logits;
    new person: V fixed, a_u by the convex fit on the simplex, near the mean of the training people

Source: Bose et al. 2025, arXiv:2504.14439 (equations only). Differs: a ridge on V and none of its cosine anchor
(which collapses V to one direction); a convex solver instead of 500 steps of Adam for new people. Weights ≥ 0
that sum to 1 cannot express opposite tastes with one direction, nor a taste outside the hull.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import Canonical, LinearFitted, finish
from rewards.methods.rules import HullRule


def _coefficients(params):
    return jax.nn.softmax(params["logits"], axis=1)


def _penalty(params, scales):
    ridge, logit_ridge = scales["ridge"], scales["logit_ridge"]
    return 0.5 * ridge * jnp.sum(params["directions"] ** 2) + 0.5 * logit_ridge * jnp.sum(
        params["logits"] ** 2
    )


LINK = shared.Link(shared.linear_features, _coefficients, _penalty)


def hull_rule(shares: np.ndarray, anchor: float, lapse: float):
    """The rule of simplex models: vertices are the outputs, the start the mean of the training people's shares."""

    def rule(gauge: Canonical) -> HullRule:
        vertices = gauge.coefficients(np.eye(shares.shape[1]))
        return HullRule(vertices, shares.mean(axis=0).astype(np.float32), gauge.precision, anchor, lapse)

    return rule


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class LoRe(shared.Reduced, RewardModel):
    """LoRe.

    Attributes:
      num_basis: number of directions.
      logit_ridge: keeps the logits of training people finite.
      anchor: pull of a new person's shares to the mean (nats per squared share); 0 is the published fit.
      steps: L-BFGS iterations.
    """

    kind: ClassVar[str] = "lore"

    num_basis: shared.Count = 6
    logit_ridge: shared.Positive = 0.1
    anchor: shared.NotNegative = 1.0
    steps: shared.Count = 150

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        directions, logits = shared.simplex_start(problem, self.num_basis, self.ridge, self.lapse)
        params, metrics = shared.minimise(
            LINK,
            {"directions": directions, "logits": logits},
            problem.data,
            {"lapse": self.lapse, "ridge": self.ridge, "logit_ridge": self.logit_ridge},
            steps=self.steps,
            on_round=on_round,
        )
        shares = np.asarray(_coefficients(params))
        report = metrics | {"mean_shares": shares.mean(axis=0).astype(float).tolist()}
        rule = hull_rule(shares[problem.answers > 0], self.anchor, self.lapse)
        return finish(self.kind, problem, params["directions"], shares, rule, report)
