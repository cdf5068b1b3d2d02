"""What counting does: how often each text wins, with nothing personal, alone and beside what the text says.

    item Bradley–Terry          s(y) = b_y,               b_y ~ N(0, τ²)
    item Bradley–Terry + text   s(y) = θᵀe(y) + b_y,      θ ~ N(0, I / ridge)

b is 0 for a text that nobody judged, so on new texts the first is a coin. Ridge and τ² are chosen by people left out
(`methods.crossed_base`). They stand in every table of a comparison: a model that predicts better than one reward of the
text alone may owe that to the texts it has seen, and only what it gains over these is about the person.

Source: Bradley & Terry 1952.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from rewards.files import JSONObject
from rewards.methods import training as shared
from rewards.methods.base import Comparisons, FittedModel, ItemTable
from rewards.methods.crossed_base import fit_base
from rewards.methods.crossed_data import Answers
from rewards.types import Preferences

ITEMS, ITEMS_TEXT = "item Bradley–Terry", "item Bradley–Terry + text"
REFERENCES = (ITEMS, ITEMS_TEXT)
DIMS, FOLDS = 48, 4


@dataclasses.dataclass(frozen=True)
class Strengths(FittedModel):
    """One score of every item, for everybody; never stored."""

    kind: ClassVar[str] = "reference"
    score_of: Float[np.ndarray, " I"]
    num_users: int

    def _adapt(self, table, answers: Comparisons):
        return np.ones((len(answers.weight), 1))

    def seen(self):
        return np.ones((self.num_users, 1))

    def _margins(self, table, people, pairs: Comparisons):
        return (self.score_of[pairs.chosen] - self.score_of[pairs.rejected]) * (pairs.weight > 0)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"score": np.asarray(self.score_of, np.float32)}

    def settings(self) -> JSONObject:
        return {"num_users": self.num_users}

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray], settings: JSONObject) -> "Strengths":
        return cls(tensors["score"], int(settings["num_users"]))


def fit_references(
    table: ItemTable, training: Preferences, weight: np.ndarray | None, seed: int
) -> dict[str, Strengths]:
    """Both references on the comparisons that every model is fitted on.

    Raises:
      UserError: as any model that reads the embeddings.
    """
    problem = shared.build(table, training, shared.Reduced(dims=DIMS), weight)
    answers = Answers.of(problem, FOLDS, seed)
    coordinates = problem.reduction.coordinates
    everything = table.embeddings @ problem.reduction.projection
    found = {}
    for name, width in ((ITEMS, 0), (ITEMS_TEXT, coordinates.shape[1])):
        base = fit_base(coordinates[:, :width], problem.prompts, answers, 0.0, seed)
        score = np.asarray(everything[:, :width], np.float64) @ base.direction
        score[problem.used] += base.strength
        found[name] = Strengths(score, training.num_users)
    return found
