"""Files that must never be half-written, and hashes of what is in them."""

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from rewards import opening
from rewards.errors import UserError
from rewards.names import checked_name
from rewards.paths import expanded

# An object read from JSON or to be written as JSON: what it holds is checked where it is read.
JSONObject = dict[str, Any]


def cache_dir() -> Path:
    """Folder for downloaded models, data and embeddings: $CHORUS_CACHE, else ~/.cache/chorus."""
    root = os.environ.get("CHORUS_CACHE")
    return Path(expanded(root)) if root else Path.home() / ".cache" / "chorus"


# `.NAME.PROCESS-HOST.RANDOM.tmp`; those of older versions, `.NAME.RANDOM.tmp`, are nobody's any more.
_OWNER = re.compile(r"\.(\d+)-([0-9a-f]{8})\.\w+\.tmp$")
_OPEN: set[Path] = set()  # temporary paths of this process


def _prefix(path: Path) -> str:
    return f".{path.name}.{os.getpid()}-{_host()}."


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Remove temporary files and folders, here and below, of processes of this machine that were killed."""
    for path in list(Path(directory).rglob(".*.tmp")):
        _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    if path in _OPEN or _alive(path.name):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _alive(name: str) -> bool:
    """Whether the process that made a temporary file may still be at work."""
    owner = _OWNER.search(name)
    if owner is None:
        return False
    if owner[2] != _host():
        return True  # on another machine: not known here
    if int(owner[1]) == os.getpid():
        return False  # an earlier process that had our number
    try:
        os.kill(int(owner[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` on success, remove it on failure."""
    path = Path(path)
    checked_name(path.name, f"{path.parent}: file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write here ({error.strerror}); choose another folder or free some space"
        ) from None
    temporary = Path(name)
    _OPEN.add(temporary)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot write ({error.strerror}); free some space or choose another folder"
        ) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _OPEN.discard(temporary)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, remove it on failure.

    Raises:
      UserError: `path` exists and is not an empty folder, also when another process made it meanwhile; or the
        disk refuses.
    """
    path = Path(path)
    checked_name(path.name, f"{path.parent}: folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path}: exists already; choose another folder or remove it")
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            _remove_leftover(leftover)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=".tmp"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot write here ({error.strerror}); choose another folder or free some space"
        ) from None
    _OPEN.add(temporary)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for file in temporary.rglob("*"):  # some writers leave their files readable by the owner alone
            file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
        os.rename(temporary, path)  # refuses a folder that is not empty
    except OSError as error:
        raise UserError(
            f"{path}: cannot write ({error.strerror}); free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _OPEN.discard(temporary)


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder (made when absent) against other processes that read, change and write what is in it.

    Whoever holds it may ask for it again.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory.resolve() / ".lock", is_singleton=True)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{directory}: cannot write here ({error.strerror}); choose another folder or free some space"
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: object) -> None:
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """JSON as files hold it."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON, naming file, line and column when it is not."""
    try:
        return json.loads(opening.text(path, what="file of JSON"))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of 4301 digits
        raise UserError(f"{path}: not valid JSON ({error}); restore or recreate the file") from None


def sha256_file(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hash of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
