"""What a model is fitted on: comparisons as they are, or weighted by how genuine they look."""

import dataclasses

import numpy as np
from jaxtyping import Float

from rewards.methods.base import FittedModel, ItemTable, OnRound, RewardModel
from rewards.methods.linear import LinearFitted
from rewards.types import Preferences


@dataclasses.dataclass(frozen=True)
class TrainingAnswers:
    """Comparisons, how much each counts, and what one answer of a new person is worth.

    Attributes:
      prefs: outcomes may be probabilities, as the mixture of kinds of answer gives them.
      weight: float[N], None for 1 each.
      lapse: of new people's answers; None leaves the model's own. One answer of the mixture without a recorded cue
        is genuine with π_G and else a coin: a lapse of 1 − π_G.
    """

    prefs: Preferences
    weight: Float[np.ndarray, " N"] | None = None
    lapse: float | None = None

    def fit(self, model: RewardModel, table: ItemTable, on_round: OnRound | None = None) -> FittedModel:
        """`model` fitted on these answers; errors as `RewardModel.fit`."""
        fitted = model.fit(table, self.prefs, weight=self.weight, on_round=on_round)
        if self.lapse is None or not isinstance(fitted, LinearFitted):
            return fitted
        return dataclasses.replace(fitted, rule=dataclasses.replace(fitted.rule, lapse=self.lapse))
