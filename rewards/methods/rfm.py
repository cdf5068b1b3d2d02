"""RFM: reward features and everybody's coefficients estimated together, convex adaptation of new people.

    r_u(x, y) = w_u · φ(x, y), φ = Vᵀx;  joint point estimates of V and all w_u by the Bradley–Terry likelihood;
    new person: V fixed, w_u by logistic regression (ridge only against separable answers), no population

Source: Barreto et al. 2025, arXiv:2503.17338. Differs: linear features over a frozen embedding; started from the
main directions of people's own logistic regressions instead of random features, so that fits are repeatable.
"""

from typing import ClassVar

import numpy as np
import pydantic

from rewards.methods import lowrank
from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import LinearFitted


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class RFM(shared.Reduced, RewardModel):
    """RFM.

    Attributes:
      num_basis: d, the number of features.
      user_ridge: weight decay of the training people's coefficients.
      adapt_ridge: ridge of a new person's, in the canonical gauge.
      steps: L-BFGS iterations.
    """

    kind: ClassVar[str] = "rfm"

    ridge: shared.Positive = 10.0
    num_basis: shared.Count = 8
    user_ridge: shared.Positive = 1.0
    adapt_ridge: shared.Positive = 0.5
    steps: shared.Count = 150

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        pooled = shared.pooled_direction(problem, self.ridge, self.lapse)
        own = shared.person_directions(problem, pooled, self.ridge, self.lapse)
        num_basis = min(self.num_basis, problem.reduction.rank, training.num_users)
        directions = shared.leading(own * np.sqrt(problem.answers)[:, None], num_basis)
        start = directions, own @ directions
        return lowrank.fit_both(
            self.kind,
            self,
            problem,
            start,
            on_round,
            user_ridge=self.user_ridge,
            adapt_ridge=self.adapt_ridge,
            steps=self.steps,
        )
