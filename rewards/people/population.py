"""The training people of a reward run: their posteriors, from which training coefficients are drawn.

population.safetensors   coef_mean float32[U, K], coef_precision float32[U, K, K]
population.json          user_ids, basis hash, sha256 of the tensors
"""

import dataclasses
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from rewards import files
from rewards.basis.store import RewardRun
from rewards.errors import UserError
from rewards.types import UserPosterior

TENSORS, RECORD = "population.safetensors", "population.json"


@dataclasses.dataclass(frozen=True)
class People:
    """Ids and posteriors of the people a basis was fitted on, in one order."""

    user_ids: tuple[str, ...]
    posteriors: tuple[UserPosterior, ...]


def save_people(
    directory: str | Path,
    basis: str,
    user_ids: list[str],
    coef_mean: np.ndarray,
    coef_precision: np.ndarray,
    counts: list[int],
) -> None:
    """Write the people of the basis with hash `basis`; `counts` are their numbers of answers."""
    directory = Path(directory)
    tensors = {
        "coef_mean": np.ascontiguousarray(coef_mean, np.float32),
        "coef_precision": np.ascontiguousarray(coef_precision, np.float32),
    }
    with files.atomic_path(directory / TENSORS) as temporary:
        safetensors.numpy.save_file(tensors, temporary)
        digest = files.sha256_file(temporary)
    files.write_json(
        directory / RECORD,
        {"basis": basis, "tensors_sha256": digest, "user_ids": user_ids, "num_answers": counts},
    )


def load_people(run: RewardRun) -> People:
    """Read the people of a reward run.

    Raises:
      UserError: files are missing, damaged, or belong to another basis.
    """
    path, record_path = run.directory / TENSORS, run.directory / RECORD
    record = files.read_json(record_path)
    if record.get("basis") != run.hash:
        raise UserError(
            f"{record_path}: belongs to another basis than {run.directory}; fit the rewards again"
        )
    if not path.is_file() or files.sha256_file(path) != record["tensors_sha256"]:
        raise UserError(f"{path}: missing or damaged (sha256 differs from {RECORD}); fit the rewards again")
    tensors = safetensors.numpy.load_file(path)
    people = zip(tensors["coef_mean"], tensors["coef_precision"], record["num_answers"], strict=True)
    return People(
        tuple(record["user_ids"]), tuple(UserPosterior(mean, precision, n) for mean, precision, n in people)
    )
