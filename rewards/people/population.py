"""The training people of a reward run: their posteriors, from which training coefficients are drawn.

population.safetensors   coef_mean float32[U, K], coef_precision float32[U, K, K]
population.json          user_ids, basis hash, numbers of answers, hashes
"""

import dataclasses
from pathlib import Path

import numpy as np

from rewards import hashed
from rewards.basis.belief import Belief
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.files import JSONObject

NAME = "population"
AGAIN = "fit the rewards again"


@dataclasses.dataclass(frozen=True)
class People:
    """Ids and posteriors of the people a basis was fitted on, in one order."""

    user_ids: tuple[str, ...]
    posteriors: tuple[Belief, ...]


def save_people(
    directory: str | Path,
    basis: str,
    user_ids: list[str],
    coef_mean: np.ndarray,
    coef_precision: np.ndarray,
    counts: list[int],
) -> None:
    """Write the people of the basis with hash `basis`; `counts` are their numbers of answers."""
    tensors = {
        "coef_mean": np.asarray(coef_mean, np.float32),
        "coef_precision": np.asarray(coef_precision, np.float32),
    }
    hashed.save(directory, NAME, tensors, {"basis": basis, "user_ids": user_ids, "num_answers": counts})


def load_people(run: RewardRun) -> People:
    """Read the people of a reward run.

    Raises:
      UserError: files are missing, damaged, or belong to another basis.
    """
    path, num_basis = run.directory / f"{NAME}.json", run.basis.num_basis

    def shapes(record: JSONObject) -> hashed.Shapes:
        if record.get("basis") != run.hash:
            raise UserError(f"{path}: belongs to another basis than {run.directory}; {AGAIN}")
        count = len(record["user_ids"])
        if len(record["num_answers"]) != count:
            raise ValueError(f"{len(record['num_answers'])} numbers of answers for {count} people")
        return {"coef_mean": (count, num_basis), "coef_precision": (count, num_basis, num_basis)}

    tensors, record = hashed.load(run.directory, NAME, shapes, AGAIN, whole="a population")
    people = zip(tensors["coef_mean"], tensors["coef_precision"], record["num_answers"], strict=True)
    return People(
        tuple(record["user_ids"]),
        tuple(Belief.from_precision(mean, precision, n) for mean, precision, n in people),
    )
