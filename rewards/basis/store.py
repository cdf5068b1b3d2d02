"""A reward run on disk: basis.safetensors (numbers) and basis.json (everything else, and the hashes).

Loading is strict. Every tensor must be there with its shape and type, nothing else may be, and the bytes
must be those that were written; a basis that is nearly the right one would give plausible, wrong
coefficients.
"""

import contextlib
import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from rewards import files, hashed, paths
from rewards.basis import rails
from rewards.basis.belief import Belief
from rewards.basis.rails import Rails
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.types import Gauge, PromptPart, Quadratic, RewardBasis

FORMAT = "chorus-reward-basis-1"
FORMAT_QUADRATIC = "chorus-reward-basis-2"  # a linear basis with the quadratic part of ideal-point models
NAME = "basis"
TENSORS = f"{NAME}.safetensors"
RECORD = f"{NAME}.json"
USERS = "users"
OTHER_MODEL = "model.json"  # written by rewards.methods.store; beside it a linear model has a basis too
KEYS = frozenset({"format", "basis_hash", "num_basis", "embedding_width", "gauge", "encoder", "extra"})
GAUGE_TENSORS = ("mean", "whitening", "rotation", "signs")
AGAIN = "restore or refit the run"


@dataclasses.dataclass(frozen=True)
class FittedBasis:
    """A basis with its population; user records refer to `hash`; `extra` is what the fit reported.

    Attributes:
      rails: which coefficients may be personal; None where everything may (`rewards.basis.rails`).
    """

    basis: RewardBasis
    prior: Belief
    hash: str
    extra: JSONObject
    rails: Rails | None = dataclasses.field(default=None, kw_only=True)

    @property
    def lapse(self) -> float:
        """The lapse rate of the likelihood under which coefficients were estimated; new answers need the same."""
        return float(self.extra.get("lapse", 0.0))


@dataclasses.dataclass(frozen=True)
class RewardRun(FittedBasis):
    """A stored one."""

    directory: Path

    @property
    def users(self) -> Path:
        """Folder of the people's records."""
        return self.directory / USERS


def basis_hash(basis: RewardBasis) -> str:
    """sha256 over head, gauge record and encoder settings: what gives coefficients their meaning."""
    record = {"gauge": gauge_record(basis.gauge), "encoder": basis.encoder}
    if basis.quadratic is not None:
        record |= {"quadratic": quadratic_record(basis.quadratic)}
    return content_hash(basis_tensors(basis), record)


def content_hash(tensors: dict[str, np.ndarray], record: JSONObject) -> str:
    """sha256 over tensors, as float32, by name and shape, and a JSON record."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    digest.update(files.sha256_json(record).encode())
    return digest.hexdigest()


def save_reward_run(
    directory: str | Path, basis: RewardBasis, prior: Belief, *, extra: JSONObject | None = None
) -> str:
    """Write the run and return its hash. `extra` is JSON kept beside it, outside the hash.

    The record is written last and names the hash of the tensors, so a run killed in between does not load.
    """
    tensors = basis_tensors(basis) | {"prior.mean": _f32(prior.mean), "prior.cov": _f32(prior.cov)}
    identity = basis_hash(basis)
    record = {
        "format": FORMAT,
        "basis_hash": identity,
        "num_basis": basis.num_basis,
        "embedding_width": int(basis.head.shape[0]),
        "gauge": gauge_record(basis.gauge),
        "encoder": basis.encoder,
        "extra": extra or {},
    }
    if basis.quadratic is not None:
        record |= {"format": FORMAT_QUADRATIC, "quadratic": quadratic_record(basis.quadratic)}
    hashed.save(directory, NAME, tensors, record)
    return identity


def load_reward_run(directory: str | Path) -> RewardRun:
    """Read a run written by `save_reward_run`.

    Raises:
      UserError: naming the file and the tensor or key: missing, extra, of another shape or type, or changed
      bytes.
    """
    directory = Path(directory)
    record_path = directory / RECORD
    if not directory.is_dir():
        raise UserError(f"{directory}: no such reward run; create one with `chorus rewards fit`")
    if not record_path.is_file():
        if (directory / OTHER_MODEL).is_file():
            kind = hashed.read_record(directory / OTHER_MODEL, AGAIN).get("kind")
            raise UserError(
                f"{directory}: holds a {kind} model, whose reward is not linear in coefficients, so it has no basis; "
                "fit one that has for this (fit.model=house, in another output_dir)"
            )
        raise UserError(
            f"{directory}: not a finished reward run (no {RECORD}); `chorus rewards fit` makes one"
        )
    tensors, record = hashed.load(directory, NAME, _shapes, AGAIN, whole="a reward run")
    quadratic = {"quadratic"} if record.get("format") == FORMAT_QUADRATIC else set()
    hashed.check_keys(record_path, record, KEYS | quadratic, AGAIN, "a reward run")
    if record["format"] not in (FORMAT, FORMAT_QUADRATIC):
        raise UserError(
            f"{record_path}: format {record['format']!r}, this version reads {FORMAT!r}; refit the run"
        )
    basis = basis_of(tensors, record["gauge"], record["encoder"], record.get("quadratic"))
    if basis_hash(basis) != record["basis_hash"]:
        raise UserError(f"{record_path}: basis_hash does not belong to this basis; {AGAIN}")
    prior = Belief.from_cov(tensors["prior.mean"], tensors["prior.cov"])
    identity = record["basis_hash"]
    limits = rails.read(directory, identity, basis.gauge.names)
    basis = dataclasses.replace(basis, encoder=_located(basis.encoder, directory))
    return RewardRun(basis, prior, identity, record["extra"], directory, rails=limits)


def _located(encoder: JSONObject, directory: Path) -> JSONObject:
    """The encoder with the place where its model is now, where that is a run which was moved together with this one.

    `chorus rewards train` has its reward run within the run whose model it reads. A run is known by the hash of its record.
    """
    model = encoder.get("model")

    def right(path: Path) -> bool:
        record = path / "policy" / "policy.json"
        with contextlib.suppress(UserError):  # whoever needs a damaged run says so
            return record.is_file() and hashed.record_identity(record) == encoder.get("fingerprint")
        return False

    if not isinstance(model, str) or Path(model).exists():
        return encoder
    return encoder | {"model": paths.find(model, "..", directory, right)}


def _shapes(record: JSONObject) -> hashed.Shapes:
    size = record["num_basis"]
    shapes = basis_shapes(record["embedding_width"], size, record.get("quadratic"))
    return shapes | {"prior.mean": (size,), "prior.cov": (size, size)}


def basis_shapes(width: int, num_basis: int, quadratic: JSONObject | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a basis, exactly."""
    shapes: dict[str, tuple[int, ...]] = {
        "head": (width, num_basis),
        "gauge.mean": (num_basis,),
        "gauge.whitening": (num_basis, num_basis),
        "gauge.rotation": (num_basis, num_basis),
        "gauge.signs": (num_basis,),
    }
    if quadratic is not None:
        shapes["quadratic.square"] = (width, quadratic["width"])
        if quadratic["prompt_source"] is not None:
            shapes["quadratic.prompt.projection"] = (width, quadratic["prompt_width"])
            shapes["quadratic.prompt.head"] = (num_basis, quadratic["width"], quadratic["prompt_width"])
    return shapes


def basis_tensors(basis: RewardBasis) -> dict[str, np.ndarray]:
    """The tensors of a basis by name; those of a linear one are a part of those of a quadratic one."""
    tensors = {"head": _f32(basis.head)}
    tensors |= {f"gauge.{name}": _f32(getattr(basis.gauge, name)) for name in GAUGE_TENSORS}
    if basis.quadratic is not None:
        tensors["quadratic.square"] = _f32(basis.quadratic.square)
        if basis.quadratic.prompt is not None:
            tensors["quadratic.prompt.projection"] = _f32(basis.quadratic.prompt.projection)
            tensors["quadratic.prompt.head"] = _f32(basis.quadratic.prompt.head)
    return tensors


def basis_of(
    tensors: dict[str, np.ndarray],
    settings: JSONObject,
    encoder: JSONObject,
    quadratic: JSONObject | None,
) -> RewardBasis:
    """The inverse of `basis_tensors`, `gauge_record` and `quadratic_record`."""
    gauge = Gauge(
        centring=settings["centring"],
        scale=float(settings["scale"]),
        names=tuple(settings["names"]),
        encoder_hash=settings["encoder_hash"],
        **{name: tensors[f"gauge.{name}"] for name in GAUGE_TENSORS},
    )
    part = None
    if quadratic is not None:
        prompt = None
        if quadratic["prompt_source"] is not None:
            projection, head = (tensors[f"quadratic.prompt.{name}"] for name in ("projection", "head"))
            prompt = PromptPart(projection, head, quadratic["prompt_source"])
        part = Quadratic(tensors["quadratic.square"], prompt)
    return RewardBasis(tensors["head"], gauge, encoder, part)


def gauge_record(gauge: Gauge) -> JSONObject:
    return {
        "centring": gauge.centring,
        "scale": float(gauge.scale),
        "names": list(gauge.names),
        "encoder_hash": gauge.encoder_hash,
    }


def quadratic_record(quadratic: Quadratic) -> JSONObject:
    """Widths R and Q, and the source of the prompts' embeddings; the latter two are null without a prompt part."""
    prompt = quadratic.prompt
    return {
        "width": int(quadratic.square.shape[1]),
        "prompt_width": None if prompt is None else int(prompt.projection.shape[1]),
        "prompt_source": None if prompt is None else prompt.source,
    }


def _f32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
