"""A fitted reward model on disk: model.safetensors (numbers) and model.json (everything else, and the hashes).

Loading is strict, as for a reward run: every tensor with its shape and type, nothing else, and the bytes that
were written. A linear model is also written as a reward run (basis.safetensors, basis.json), so whatever reads
reward runs reads it; its hash is the hash of its basis, which user records refer to.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from rewards import files
from rewards.basis import store as reward_store
from rewards.errors import UserError
from rewards.methods import MODELS, fitted_type
from rewards.methods.base import FittedModel
from rewards.methods.linear import LinearFitted

FORMAT = "chorus-reward-model-1"
TENSORS, RECORD = "model.safetensors", "model.json"
KEYS = {"format", "kind", "model_hash", "shapes", "settings", "tensors_sha256", "record_sha256"}


def model_hash(fitted: FittedModel) -> str:
    """What people's states belong to: the basis hash of a linear model, else sha256 over tensors and settings."""
    if isinstance(fitted, LinearFitted):
        return reward_store.basis_hash(fitted.basis)
    digest = hashlib.sha256()
    for name, array in sorted(fitted.tensors().items()):
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    digest.update(files.sha256_json({"kind": fitted.kind, "settings": fitted.settings()}).encode())
    return digest.hexdigest()


def extra_of(fitted: LinearFitted) -> dict[str, Any]:
    """What a reward run says of its model besides the basis."""
    return {"lapse": fitted.rule.lapse, "model": fitted.kind}


def save_model(directory: str | Path, fitted: FittedModel) -> str:
    """Write the model and return its hash.

    The record is written last and names the hash of the tensors, so a save killed in between does not load.
    """
    directory = Path(directory)
    identity = model_hash(fitted)
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in fitted.tensors().items()}
    with files.atomic_path(directory / TENSORS) as temporary:
        safetensors.numpy.save_file(tensors, temporary)
        tensors_sha256 = files.sha256_file(temporary)
    body = {
        "format": FORMAT,
        "kind": fitted.kind,
        "model_hash": identity,
        "shapes": {name: list(array.shape) for name, array in sorted(tensors.items())},
        "settings": fitted.settings(),
        "tensors_sha256": tensors_sha256,
    }
    if isinstance(fitted, LinearFitted):
        reward_store.save_reward_run(directory, fitted.basis, fitted.prior, extra=extra_of(fitted))
    files.write_json(directory / RECORD, body | {"record_sha256": files.sha256_json(body)})
    return identity


def load_model(directory: str | Path, *, expected_hash: str | None = None) -> FittedModel:
    """Read a model written by `save_model`.

    Args:
      expected_hash: the hash that records or a policy refer to.
    Raises:
      UserError: naming the file and the tensor or key: missing, extra, of another shape or type, changed bytes;
      or another model than the one expected.
    """
    directory = Path(directory)
    path, record_path = directory / TENSORS, directory / RECORD
    record = _read_record(record_path)
    if expected_hash is not None and record["model_hash"] != expected_hash:
        raise UserError(
            f"{directory}: model {record['model_hash'][:12]}…, but {expected_hash[:12]}… is needed; use the model "
            "it was made with, or make it again"
        )
    shapes = {name: tuple(shape) for name, shape in record["shapes"].items()}
    tensors = reward_store.read_tensors(path, shapes)
    if files.sha256_file(path) != record["tensors_sha256"]:
        raise UserError(
            f"{path}: its bytes differ from those written (sha256 in {RECORD}); restore or refit the model"
        )
    try:
        fitted = fitted_type(record["kind"]).restore(tensors, record["settings"])
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    if model_hash(fitted) != record["model_hash"]:
        raise UserError(
            f"{record_path}: model_hash does not belong to this model; restore or refit the model"
        )
    return fitted


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: not a stored reward model (no {RECORD}); fit it again")
    record = files.read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(record).__name__}; refit the model")
    for key in sorted(KEYS ^ set(record)):
        problem = "is missing" if key in KEYS else "is not part of a reward model"
        raise UserError(f"{path}: key {key!r} {problem}; restore or refit the model")
    if record["format"] != FORMAT or record["kind"] not in MODELS:
        raise UserError(
            f"{path}: format {record['format']!r}, kind {record['kind']!r}; this version reads {FORMAT!r} with "
            f"{', '.join(MODELS)}"
        )
    body = {key: value for key, value in record.items() if key != "record_sha256"}
    if files.sha256_json(body) != record["record_sha256"]:
        raise UserError(
            f"{path}: its content differs from what was written (sha256); restore or refit the model"
        )
    return record
