"""A reward run on disk: basis.safetensors (numbers) and basis.json (everything else, and the hashes).

Loading is strict. Every tensor must be there with its shape and type, nothing else may be, and the bytes
must be those that were written; a basis that is nearly the right one would give plausible, wrong
coefficients.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rewards import files
from rewards.errors import UserError
from rewards.types import Gauge, GroupPrior, RewardBasis

FORMAT = "chorus-reward-basis-1"
TENSORS = "basis.safetensors"
RECORD = "basis.json"
KEYS = {"format", "basis_hash", "num_basis", "embedding_width", "gauge", "encoder", "extra"}
KEYS |= {"tensors_sha256", "record_sha256"}
GAUGE_TENSORS = ("mean", "whitening", "rotation", "signs")


@dataclasses.dataclass(frozen=True)
class RewardRun:
    """A stored basis with its population; user records refer to `hash`; `extra` is what the fit reported."""

    basis: RewardBasis
    prior: GroupPrior
    hash: str
    directory: Path
    extra: dict[str, Any]


def basis_hash(basis: RewardBasis) -> str:
    """sha256 over head, gauge record and encoder settings: what gives coefficients their meaning."""
    digest = hashlib.sha256()
    for name, array in sorted(_basis_tensors(basis).items()):
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    digest.update(files.sha256_json({"gauge": _gauge_record(basis.gauge), "encoder": basis.encoder}).encode())
    return digest.hexdigest()


def save_reward_run(
    directory: str | Path, basis: RewardBasis, prior: GroupPrior, *, extra: dict[str, Any] | None = None
) -> str:
    """Write the run and return its hash. `extra` is JSON kept beside it, outside the hash.

    The record is written last and names the hash of the tensors, so a run killed in between does not load.
    """
    directory = Path(directory)
    tensors = _basis_tensors(basis) | {"prior.mean": _f32(prior.mean), "prior.cov": _f32(prior.cov)}
    with files.atomic_path(directory / TENSORS) as temporary:
        safetensors.numpy.save_file(tensors, temporary)
        tensor_hash = files.sha256_file(temporary)
    identity = basis_hash(basis)
    body = {
        "format": FORMAT,
        "basis_hash": identity,
        "tensors_sha256": tensor_hash,
        "num_basis": basis.num_basis,
        "embedding_width": int(basis.head.shape[0]),
        "gauge": _gauge_record(basis.gauge),
        "encoder": basis.encoder,
        "extra": extra or {},
    }
    files.write_json(directory / RECORD, body | {"record_sha256": files.sha256_json(body)})
    return identity


def load_reward_run(directory: str | Path) -> RewardRun:
    """Read a run written by `save_reward_run`.

    Raises:
      UserError: naming the file and the tensor or key: missing, extra, of another shape or type, or changed
      bytes.
    """
    directory = Path(directory)
    path, record_path = directory / TENSORS, directory / RECORD
    if not directory.is_dir():
        raise UserError(f"{directory}: no such reward run; create one with `chorus rewards fit`")
    record = _read_record(record_path)
    tensors = _read_tensors(path, record["embedding_width"], record["num_basis"])
    if files.sha256_file(path) != record["tensors_sha256"]:
        raise UserError(
            f"{path}: its bytes differ from those written (sha256 in {RECORD}); restore or refit the run"
        )
    settings = record["gauge"]
    gauge = Gauge(
        centring=settings["centring"],
        scale=float(settings["scale"]),
        names=tuple(settings["names"]),
        encoder_hash=settings["encoder_hash"],
        **{name: tensors[f"gauge.{name}"] for name in GAUGE_TENSORS},
    )
    basis = RewardBasis(tensors["head"], gauge, record["encoder"])
    if basis_hash(basis) != record["basis_hash"]:
        raise UserError(f"{record_path}: basis_hash does not belong to this basis; restore or refit the run")
    prior = GroupPrior(tensors["prior.mean"], tensors["prior.cov"])
    return RewardRun(basis, prior, record["basis_hash"], directory, record["extra"])


def _read_record(path: Path) -> dict[str, Any]:
    record = files.read_json(path)
    if not isinstance(record, dict):
        raise UserError(
            f"{path}: expected a JSON object, found {type(record).__name__}; restore or refit the run"
        )
    for key in sorted(KEYS ^ set(record)):
        problem = "is missing" if key in KEYS else "is not part of a reward run"
        raise UserError(f"{path}: key {key!r} {problem}; restore or refit the run")
    if record["format"] != FORMAT:
        raise UserError(f"{path}: format {record['format']!r}, this version reads {FORMAT!r}; refit the run")
    body = {key: value for key, value in record.items() if key != "record_sha256"}
    if files.sha256_json(body) != record["record_sha256"]:
        raise UserError(
            f"{path}: its content differs from what was written (sha256); restore or refit the run"
        )
    return record


def _read_tensors(path: Path, width: int, num_basis: int) -> dict[str, np.ndarray]:
    expected = {
        "head": (width, num_basis),
        "gauge.mean": (num_basis,),
        "gauge.whitening": (num_basis, num_basis),
        "gauge.rotation": (num_basis, num_basis),
        "gauge.signs": (num_basis,),
        "prior.mean": (num_basis,),
        "prior.cov": (num_basis, num_basis),
    }
    if not path.is_file():
        raise UserError(f"{path}: no such file; restore or refit the run")
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); restore or refit the run"
        ) from None
    for name in sorted(set(expected) ^ set(tensors)):
        problem = "is missing" if name in expected else "is not part of a reward run"
        raise UserError(f"{path}: tensor {name!r} {problem}; restore or refit the run")
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape or found.dtype != np.float32:
            raise UserError(
                f"{path}: tensor {name!r} is {found.dtype}{list(found.shape)}, expected "
                f"float32{list(shape)}; restore or refit the run"
            )
    return tensors


def _basis_tensors(basis: RewardBasis) -> dict[str, np.ndarray]:
    gauge = {f"gauge.{name}": _f32(getattr(basis.gauge, name)) for name in GAUGE_TENSORS}
    return {"head": _f32(basis.head)} | gauge


def _gauge_record(gauge: Gauge) -> dict[str, Any]:
    return {
        "centring": gauge.centring,
        "scale": float(gauge.scale),
        "names": list(gauge.names),
        "encoder_hash": gauge.encoder_hash,
    }


def _f32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
