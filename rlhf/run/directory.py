"""A run directory: one resolved configuration, one owner at a time, a record of where it was made.

config.yaml        resolved configuration (first line: what made it)
environment.json   versions, seed, devices, code revision, command of every session
inputs.json        hashes of what a training run reads (`rlhf.run.inputs`)
metrics.jsonl, tensorboard/, checkpoints/, users/, metrics.json, report.html   written by others
run.lock           held while a process works here
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from rewards import hashed, opening
from rewards.errors import UserError
from rewards.files import JSONObject, remove_leftovers, write_text
from rewards.shown import without_credentials
from rlhf.run import processes, trackers
from rlhf.run.config.common import RunConfig
from rlhf.run.config.document import parse, parse_value
from rlhf.run.config.load import to_dict, to_yaml, validate

_LOG = logging.getLogger("chorus")

CONFIG, ENVIRONMENT, RESULT, LOCK = "config.yaml", "environment.json", "metrics.json", "run.lock"
REPORT, INPUTS = "report.html", "inputs.json"
_PACKAGES = (
    "chorus-rlhf",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
    "scikit-learn",
)
_SECRET = re.compile(r"(?i)token|key|secret|passw|auth")
_ABSENT = object()
# Where a run lies, on what it runs and who is told changes none of its numbers; what happens in a step that is not finite
# changes none that it has so far.
_FREE = ("output_dir", "mesh", "track", "train.on_nonfinite", "train.max_skips")


class Run:
    """An open run directory; use it as a context manager.

    Attributes:
      directory: the run directory.
      resumed: whether it held this very run before.
    """

    def __init__(self, directory: Path, lock: int, resumed: bool):
        self.directory, self.resumed, self._lock = directory, resumed, lock

    @classmethod
    def open(cls, output_dir: str | os.PathLike[str], config: RunConfig, kind: str) -> "Run":
        """Create the run directory, or resume it when it holds the same configuration.

        Args:
          output_dir: directory; what `_FREE` names is not compared, so a run may be moved.
          config: frozen configuration record.
          kind: what makes the run: `rewards`, `sft`, `dpo`, `evaluate`.
        Raises:
          UserError: another configuration or kind is there (the first differing key is named), no such tracker, the directory
            holds something that is no run, another process works in it, or it cannot be written.
        """
        directory = Path(output_dir)
        if processes.is_writer():
            held: list[Run] = []

            def opened() -> bool:
                held.append(cls._opened(directory, config, kind))
                return held[0].resumed

            processes.from_writer(opened)
            run = held[0]
        else:
            run = cls(directory, -1, processes.from_writer(bool))
        try:
            processes.together(run._seen)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def _opened(cls, directory: Path, config: RunConfig, kind: str) -> "Run":
        _check_before_creating(directory, config, kind)
        trackers.check(getattr(config, "track", ()))
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output_dir {directory}: cannot create it ({error.strerror}); choose another output_dir"
            ) from None
        run = cls(directory, _acquire(directory), resumed=True)
        try:
            run.resumed = resumed = _check_before_creating(directory, config, kind)
            remove_leftovers(directory)
            if not resumed:
                write_text(directory / CONFIG, f"# chorus {kind}\n{to_yaml(config)}")
            _record_environment(directory, config, kind)
        except BaseException:
            if not run.resumed:
                run._withdraw()
            run.close()
            raise
        return run

    def _seen(self) -> None:
        """Every process reads what the writer wrote."""
        if not (self.directory / CONFIG).is_file():
            raise UserError(
                f"output_dir {self.directory}: process {processes.index()} on {platform.node()} does not see what process 0 "
                "wrote there; give a folder that all hosts share"
            )

    def write_result(self, result: JSONObject) -> None:
        """Write metrics.json whole or not at all; arrays become lists, non-finite numbers null.

        It is what says that a run is finished: nothing of the run is written after it.
        """
        if not processes.is_writer():
            return
        hashed.write_record(self.directory / RESULT, plain(result))

    def stored_result(self) -> JSONObject:
        """metrics.json of a run that an earlier session finished; says so on stderr."""
        _LOG.info(f"{self.directory}: finished earlier; this is its stored result")
        return read_result(self.directory)

    def close(self) -> None:
        """Give the directory up."""
        if self._lock >= 0:
            os.close(self._lock)  # the kernel drops the lock; the file stays, it is only a handle
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and not self.resumed and processes.is_writer():
            self._withdraw()
        self.close()

    def _withdraw(self) -> None:
        """Undo a fresh run that ended in the user's mistake before it made anything, so that the mended
        configuration may use the same output_dir."""
        made = {CONFIG, ENVIRONMENT, LOCK, INPUTS}
        for path in sorted(self.directory.rglob("*"), reverse=True):
            if path.is_file() and path.name == "metrics.jsonl" and path.stat().st_size == 0:
                path.unlink()
            elif path.is_file() and path.parent.name in ("tensorboard", "cache"):
                path.unlink()
            elif path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
        if {path.name for path in self.directory.iterdir()} <= made:
            for name in made:
                (self.directory / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.directory.rmdir()


def holds(directory: str | os.PathLike[str], config: RunConfig, kind: str) -> bool:
    """Whether a directory is free for this very run, or is this very run."""
    try:
        _check_before_creating(Path(directory), config, kind)
    except UserError:
        return False
    return True


def read_result(directory: str | os.PathLike[str]) -> JSONObject:
    """metrics.json of a finished run."""
    return hashed.read_record(Path(directory) / RESULT, "restore it, or remove it and run the command again")


def _check_before_creating(directory: Path, config: RunConfig, kind: str) -> bool:
    """True when `directory` holds this very run, False when it is free; otherwise a UserError."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output_dir {directory}: a file of this name exists; choose another output_dir")
    if not directory.is_dir():
        return False
    path = directory / CONFIG
    if not path.exists():
        foreign = sorted(
            p.name for p in directory.iterdir() if p.name != LOCK and not p.name.endswith(".tmp")
        )
        if foreign:
            raise UserError(
                f"output_dir {directory}: not empty ({foreign[0]}) and not a run (no {CONFIG}); "
                "choose another output_dir"
            )
        return False
    try:
        text = opening.text(path)
        stored, _ = parse(text, CONFIG)
        stored_kind = text.split("\n", 1)[0].removeprefix("# chorus ").strip()
    except (OSError, UnicodeDecodeError, UserError):
        stored, stored_kind = None, kind
    if not isinstance(stored, dict):
        raise UserError(f"{path}: damaged, so the run cannot be resumed; choose another output_dir")
    if stored_kind != kind:
        raise UserError(
            f"output_dir {directory}: holds a {stored_kind} run, not {kind}; choose another output_dir"
        )
    wanted = to_dict(config)
    kept: JSONObject = {key: _texts_kept(value, wanted.get(key)) for key, value in stored.items()}
    with contextlib.suppress(UserError):  # keys that are younger than the run had their defaults then
        kept = to_dict(validate(kept, type(config), {}, str(path)))
    difference = first_difference(kept, wanted)
    if difference is not None:
        key, old, new = difference
        raise UserError(
            f"output_dir {directory}: holds a run with another configuration ({key} is {old} there, "
            f"{new} here); choose another output_dir or set {key} back"
        )
    return True


def _texts_kept(stored: object, wanted: object) -> object:
    """`stored` with its texts: runs made under YAML 1.1 hold text such as 1e5 without quotes, a number today."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return {key: _texts_kept(value, wanted.get(key)) for key, value in stored.items()}
    if isinstance(wanted, str) and isinstance(stored, (int, float)) and parse_value(wanted, CONFIG) == stored:
        return wanted
    return stored


def first_difference(stored: JSONObject, wanted: JSONObject, prefix: str = "") -> tuple[str, str, str] | None:
    """First key (in the order of `wanted`) whose value differs: dotted key, old and new value as text."""
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        key = f"{prefix}{name}"
        if key in _FREE:
            continue
        old, new = stored.get(name, _ABSENT), wanted.get(name, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = first_difference(old, new, f"{key}.")
            if inner is not None:
                return inner
        elif old != new:
            return key, _cut(old), _cut(new)
    return None


def _cut(value: object) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    text = without_credentials(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _acquire(directory: Path) -> int:
    """Lock the directory. The kernel drops the lock of a process that dies, so none is ever stale."""
    path = directory / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"output_dir {directory}: cannot write here ({error.strerror}); choose another output_dir"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise UserError(
            f"output_dir {directory}: in use by {owner}; wait for it, end it, or choose another output_dir"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    return handle


def _record_environment(directory: Path, config: RunConfig, kind: str) -> None:
    """Append this session to environment.json. Environment variables are left out: they hold secrets."""
    path = directory / ENVIRONMENT
    sessions = []
    if path.exists():
        with contextlib.suppress(UserError):  # a torn record of the past must not stop a resume
            sessions = hashed.read_record(path).get("sessions", [])
    session = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [_without_secret(argument) for argument in sys.argv],
        "versions": {"python": platform.python_version()}
        | {name: v for name in _PACKAGES if (v := _version(name))},
        "platform": platform.platform(),
        "devices": _devices(),
        "git": _revision(),
    }
    hashed.write_record(path, {"kind": kind, "seed": config.seed, "sessions": [*sessions, session]})


def _without_secret(argument: str) -> str:
    name, equals, _ = argument.partition("=")
    return f"{name}=..." if equals and _SECRET.search(name) else without_credentials(argument)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import jax  # here, so that reading a run directory does not start a backend

    return [f"{device.platform}:{device.device_kind}" for device in jax.devices()]


def _revision() -> JSONObject | None:
    """Commit of the code when it runs from a checkout; None for an installed package."""

    def git(*args: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if git(
            "ls-files", "--error-unmatch", Path(__file__).name
        ):  # a virtual environment inside some repository is not ours
            return {
                "commit": git("rev-parse", "HEAD"),
                "modified": bool(git("status", "--porcelain", "-uno")),
            }
    except (OSError, subprocess.SubprocessError):
        pass
    return None


def plain(value: Any) -> Any:
    """Nested results as JSON values: arrays to lists, NumPy scalars to numbers, non-finite ones to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
