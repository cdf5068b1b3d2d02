"""P-RLHF's user model on rewards: a generic embedding and everybody's offset from it.

    r_u(x, y) = e_u · Vᵀx,  e_u = e_0 + o_u
    loss = α · personal(e_u) + (1 − α) · generic(e_0), summed over comparisons, + ½ offset_ridge Σ_u |o_u|²

A person nothing is known about has e_0; with answers, o_u is found with V and e_0 fixed.

Source: Li et al. 2024, arXiv:2402.05133, individual user model and eq. of the mixed loss, there in policy space.
Differs: on a linear reward; offsets start from people's own directions; a ridge on offsets (there none), since a
linear model has no other limit for them; unseen people with answers get an offset instead of staying generic.
"""

from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np
import pydantic

from rewards.basis.joint import Comparisons
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import LinearFitted, finish
from rewards.methods.rules import GaussianRule


def _coefficients(params):
    """Everybody's e_u, then e_0 as one more person: the generic loss is that person's comparisons."""
    generic = params["generic"]
    return jnp.concatenate([generic + params["offset"], generic[None]])


def _penalty(params, scales):
    return 0.5 * scales["ridge"] * jnp.sum(params["directions"] ** 2) + 0.5 * scales["offset_ridge"] * (
        jnp.sum(params["offset"] ** 2) + jnp.sum(params["generic"] ** 2)
    )


LINK = shared.Link(shared.linear_features, _coefficients, _penalty)


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Offset(shared.Reduced, RewardModel):
    """Generic embedding plus offsets.

    Attributes:
      num_basis: width of the user embedding.
      alpha: share of the personal loss; the rest is the generic one.
      offset_ridge: ridge of offsets (and of e_0).
      steps: L-BFGS iterations.
    """

    kind: ClassVar[str] = "offset"

    ridge: shared.Positive = 10.0
    num_basis: shared.Count = 6
    alpha: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5
    offset_ridge: shared.Positive = 3.0
    steps: shared.Count = 150

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        pooled = shared.pooled_direction(problem, self.ridge, self.lapse)
        own = shared.person_directions(problem, pooled, self.ridge, self.lapse)
        num_basis = min(self.num_basis, problem.reduction.rank, training.num_users)
        directions = shared.leading(own * np.sqrt(problem.answers)[:, None], num_basis)
        generic = pooled @ directions
        start = {"directions": directions, "generic": generic, "offset": own @ directions - generic}
        params, metrics = shared.minimise(
            LINK,
            start,
            self._mixed(problem.data, training.num_users),
            {"lapse": self.lapse, "ridge": self.ridge, "offset_ridge": self.offset_ridge},
            steps=self.steps,
            on_round=on_round,
        )

        def rule(gauge):
            # With e_0 fixed a new person's loss is α times their own, so the ridge weighs 1/α as much.
            cov = gauge.covariance(np.eye(num_basis) * self.alpha / self.offset_ridge)
            return GaussianRule(
                gauge.coefficients(params["generic"]), np.linalg.inv(cov).astype(np.float32), self.lapse
            )

        coef = np.asarray(_coefficients(params))[:-1]
        size = np.linalg.norm(params["offset"][problem.answers > 0], axis=1).mean()
        report = metrics | {
            "offset_norm": float(size),
            "generic_norm": float(np.linalg.norm(params["generic"])),
        }
        return finish(self.kind, problem, params["directions"], coef, rule, report)

    def _mixed(self, data: Comparisons[np.ndarray], num_users: int) -> Comparisons[np.ndarray]:
        """Every comparison once for its person and once for the generic one, with weights α and 1 − α."""
        twice = Comparisons(data.items, *(np.concatenate([part, part]) for part in data[1:]))
        user = np.concatenate([data.user, np.full_like(data.user, num_users)])
        weight = np.concatenate([self.alpha * data.weight, (1 - self.alpha) * data.weight])
        return twice._replace(user=user, weight=weight.astype(np.float32))
