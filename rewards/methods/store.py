"""A fitted reward model on disk: model.safetensors (numbers) and model.json (everything else, and the hashes).

Loading is strict, as for a reward run: every tensor with its shape and type, nothing else, and the bytes that
were written. A linear model is also written as a reward run (basis.safetensors, basis.json), so whatever reads
reward runs reads it; its hash is the hash of its basis, which user records refer to.
"""

from pathlib import Path

import numpy as np

from rewards import hashed
from rewards.basis import store as reward_store
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods import MODELS, fitted_type
from rewards.methods.base import FittedModel
from rewards.methods.linear import LinearFitted

FORMAT = "chorus-reward-model-1"
NAME = "model"
TENSORS, RECORD = f"{NAME}.safetensors", f"{NAME}.json"
KEYS = frozenset({"format", "kind", "model_hash", "shapes", "settings"})
AGAIN = "restore or refit the model"


def model_hash(fitted: FittedModel) -> str:
    """What people's states belong to: the basis hash of a linear model, else sha256 over tensors and settings."""
    if isinstance(fitted, LinearFitted):
        return reward_store.basis_hash(fitted.basis)
    return reward_store.content_hash(fitted.tensors(), {"kind": fitted.kind, "settings": fitted.settings()})


def extra_of(fitted: LinearFitted) -> JSONObject:
    """What a reward run says of its model besides the basis."""
    probes = {"probes": fitted.report["probes"]} if "probes" in fitted.report else {}
    return {"lapse": fitted.rule.lapse, "model": fitted.kind} | probes


def save_model(directory: str | Path, fitted: FittedModel) -> str:
    """Write the model and return its hash; a linear model is written as a reward run besides."""
    directory = Path(directory)
    identity = model_hash(fitted)
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in fitted.tensors().items()}
    if isinstance(fitted, LinearFitted):
        reward_store.save_reward_run(directory, fitted.basis, fitted.prior, extra=extra_of(fitted))
    record = {
        "format": FORMAT,
        "kind": fitted.kind,
        "model_hash": identity,
        "shapes": {name: list(array.shape) for name, array in sorted(tensors.items())},
        "settings": fitted.settings(),
    }
    hashed.save(directory, NAME, tensors, record)
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
    path = directory / RECORD
    if not path.is_file():
        raise UserError(f"{directory}: not a stored reward model (no {RECORD}); fit it again")
    tensors, record = hashed.load(
        directory,
        NAME,
        lambda record: {name: tuple(shape) for name, shape in record["shapes"].items()},
        AGAIN,
        whole="a reward model",
    )
    hashed.check_keys(path, record, KEYS, AGAIN, "a reward model")
    if record["format"] != FORMAT or record["kind"] not in MODELS:
        raise UserError(
            f"{path}: format {record['format']!r}, kind {record['kind']!r}; this version reads {FORMAT!r} with "
            f"{', '.join(MODELS)}"
        )
    if expected_hash is not None and record["model_hash"] != expected_hash:
        raise UserError(
            f"{directory}: model {record['model_hash'][:12]}…, but {expected_hash[:12]}… is needed; use the model "
            "it was made with, or make it again"
        )
    try:
        fitted = fitted_type(record["kind"]).restore(tensors, record["settings"])
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    if model_hash(fitted) != record["model_hash"]:
        raise UserError(f"{path}: model_hash does not belong to this model; {AGAIN}")
    return fitted
