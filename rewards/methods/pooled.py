"""The two ends: one reward for everybody, and one for each person with nothing shared.

    aggregate   r(x, y) = θ · x(x, y), ordinary Bradley–Terry (K = 1, everybody has the same w)
    per_user    r_u(x, y) = θ_u · x(x, y), θ_u = argmin −Σ log P + ½ ridge |θ_u|²

with x the reduced embeddings. Both are convex. Personalisation has to beat the first; the second shows what a
person's own answers are worth without a population.
"""

from typing import ClassVar

import numpy as np
import pydantic

from rewards.methods import training as shared
from rewards.methods.base import RewardModel
from rewards.methods.linear import LinearFitted, finish
from rewards.methods.rules import FixedRule, GaussianRule


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class Aggregate(shared.Reduced, RewardModel):
    """Bradley–Terry on everybody's comparisons."""

    kind: ClassVar[str] = "aggregate"

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        theta = shared.pooled_direction(problem, self.ridge, self.lapse)
        one = np.ones((training.num_users, 1))
        return finish(
            self.kind,
            problem,
            theta[:, None],
            one,
            lambda gauge: FixedRule(gauge.coefficients(one[0]), gauge.precision, self.lapse),
            {},
        )


@pydantic.dataclasses.dataclass(frozen=True, config=shared.STRICT)
class PerUser(shared.Reduced, RewardModel):
    """One ridge-logistic direction a person; a new person is fitted the same way, from nothing.

    Attributes:
      ridge: of every person's direction; in it lies all there is against overfitting.
    """

    kind: ClassVar[str] = "per_user"

    dims: shared.Count = 16

    def _fit(self, table, training, *, weight=None, on_round=None) -> LinearFitted:
        problem = shared.build(table, training, self, weight)
        width = problem.reduction.rank
        own = shared.person_directions(problem, np.zeros(width), self.ridge, self.lapse)

        def rule(gauge):
            precision = np.linalg.inv(gauge.covariance(np.eye(width) / self.ridge))
            return GaussianRule(np.zeros(width, np.float32), precision.astype(np.float32), self.lapse)

        return finish(self.kind, problem, np.eye(width), own, rule, {})
