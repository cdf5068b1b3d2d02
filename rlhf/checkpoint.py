"""Checkpoints that are whole, checked, and named when they are not.

Orbax writes the arrays. Around it stands what it lacks (measured with 0.12.8: it loads float32 as bfloat16 and a
flipped bit without a word, and names no leaf when trees differ): a manifest with the sha256 of every file and the
shape and type of every leaf, a completion marker written last, and a rename that publishes the step.

    checkpoints/00000300/
      arrays/          Orbax
      manifest.json    {step, leaves: {name: {shape, dtype}}, files: {path: sha256}, meta}
      COMPLETE         sha256 of manifest.json
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rewards.errors import UserError
from rewards.files import read_json, sha256_file, write_json

_ARRAYS, _MANIFEST, _MARKER = "arrays", "manifest.json", "COMPLETE"
_STEP = re.compile(r"^\d{8,}$")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Damaged(Exception):
    """A checkpoint on disk that is not what was written; the message says which file and how."""


class Checkpointer:
    """Save and restore (step, tree, meta) in a directory, newest good step first.

    Args:
      directory: created at the first save.
      keep: newest steps kept; 2 leaves one to fall back on.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2):
        self.directory, self.keep = Path(directory).absolute(), keep

    def steps(self) -> list[int]:
        """Steps on disk in ascending order, good or not."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if _STEP.match(path.name))

    def save(self, step: int, tree: Any, meta: dict[str, Any] | None = None) -> None:
        """Write one step. A process killed here at any instant leaves the earlier steps as they were.

        Later steps (of a past that a damaged file made us leave) and those beyond `keep` are removed afterwards.

        Args:
          step: number of finished optimiser steps.
          tree: arrays (JAX or NumPy; typed PRNG keys too) in any pytree.
          meta: JSON values: data position, counters, configuration hash.
        Raises:
          UserError: the disk is full or refuses; the earlier steps stand.
        """
        leaves = _named_leaves(tree)
        self._clean()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._check_space(leaves)
            temporary = Path(tempfile.mkdtemp(dir=self.directory, prefix=f".{step:08d}.", suffix=".tmp"))
        except OSError as error:
            raise self._refused(step, error.strerror) from None
        try:
            _write_step(temporary, step, leaves, meta or {})
            self._publish(temporary, step)
        except OSError as error:
            raise self._refused(step, error.strerror) from None
        except ValueError as error:  # tensorstore reports the system's errors as text
            if "os_error_code" not in str(error) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = "No space left on device" if "RESOURCE_EXHAUSTED" in str(error) else "the disk refused"
            raise self._refused(step, reason) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for other in self.steps():
            if other > step or other not in [s for s in self.steps() if s <= step][-self.keep :]:
                self._remove(self._path(other))

    def restore(self, target_tree: Any, prefix: str = "") -> tuple[int, Any, dict[str, Any]] | None:
        """Load the newest good step → (step, tree, meta), or None when there is no step at all.

        Damaged steps are named on stderr and passed over.

        Args:
          target_tree: pytree of arrays or `jax.ShapeDtypeStruct` that says what is expected; where a leaf has
            a sharding, the array is placed so. NumPy leaves come back as NumPy.
          prefix: dotted name of the subtree to load (`"policy"`), "" for everything; then `target_tree` is
            that subtree.
        Raises:
          UserError: no step is good; or a leaf is missing, left over, or of another shape or type than
            `target_tree` says (the leaf is named).
        """
        wanted = _named_leaves(target_tree, prefix)
        for step, manifest in self._good_steps():
            _compare(wanted, manifest["leaves"], prefix, self._path(step))
            arrays = _read_arrays(self._path(step) / _ARRAYS, wanted, manifest["leaves"])
            structure = jax.tree_util.tree_structure(target_tree)
            return step, jax.tree_util.tree_unflatten(structure, [arrays[name] for name in wanted]), manifest["meta"]
        return None

    def peek(self) -> tuple[int, dict[str, Any]] | None:
        """Step and meta of the newest good step, without its arrays; None when there is no step at all."""
        return next(((step, manifest["meta"]) for step, manifest in self._good_steps()), None)

    def _good_steps(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Good steps from the newest on; a UserError when there are steps and none is good."""
        problems: list[str] = []
        found = False
        for step in reversed(self.steps()):
            try:
                manifest = _verify(self._path(step))
            except Damaged as damage:
                problems.append(f"step {step} ({damage})")
                print(f"checkpoint {self._path(step)}: damaged ({damage}); trying an earlier one", file=sys.stderr)
                continue
            found = True
            yield step, manifest
        if problems and not found:
            raise UserError(
                f"{self.directory}: no usable checkpoint: {', '.join(problems)}; "
                "remove this folder to start again, or restore it from a copy"
            )

    def _publish(self, temporary: Path, step: int) -> None:
        """Move the finished step to its name; a step of that name (a damaged one) is moved aside first."""
        if self._path(step).exists():
            self._remove(self._path(step))
        os.rename(temporary, self._path(step))
        _sync(self.directory)

    def _remove(self, path: Path) -> None:
        """Delete a step: out of sight by one rename, then file by file, so that a kill leaves no half step."""
        trash = Path(tempfile.mkdtemp(dir=self.directory, prefix=".old.", suffix=".tmp"))
        os.rename(path, trash / path.name)
        shutil.rmtree(trash, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what killed processes left."""
        for path in self.directory.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _check_space(self, leaves: dict[str, Any]) -> None:
        needed = sum(_nbytes(leaf) for leaf in leaves.values())
        if shutil.disk_usage(self.directory).free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {os.strerror(errno.ENOSPC).lower()}")

    def _refused(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._path(step)}: cannot save the checkpoint ({reason}); free some space and run the same command "
            "again, it resumes from the last good step"
        )

    def _path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"


def _named_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves under dotted names, in tree order; names are what messages and the manifest speak of."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = ".".join([prefix] * bool(prefix) + [_part(entry) for entry in path]) or "value"
        if name in named:
            raise ValueError(f"two leaves of the tree are both called {name}")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name}: a checkpoint holds arrays, not {type(leaf).__name__}; put it into meta")
        named[name] = leaf
    return named


def _part(entry: Any) -> str:
    """One step of a tree path as text: dict key, attribute or position."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"unknown tree path entry {entry!r}")


def _nbytes(leaf: Any) -> int:
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return int(leaf.size) * leaf.dtype.itemsize


def _write_step(folder: Path, step: int, leaves: dict[str, Any], meta: dict[str, Any]) -> None:
    """Arrays, then the manifest over them, then the marker over the manifest; each synced before the next."""
    ocp = _orbax()
    with _quiet():
        # Orbax refuses arrays without elements; the manifest alone says all about those.
        ocp.save(folder / _ARRAYS, {name: leaf for name, leaf in leaves.items() if leaf.size} or {"": np.zeros(1)})
    files = {}
    for path in sorted(p for p in (folder / _ARRAYS).rglob("*") if p.is_file()):
        _sync(path)
        files[str(path.relative_to(folder))] = sha256_file(path)
    described = {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()}
    write_json(folder / _MANIFEST, {"step": step, "leaves": described, "files": files, "meta": meta})
    _sync(folder / _MANIFEST)
    (folder / _MARKER).write_text(sha256_file(folder / _MANIFEST))
    _sync(folder / _MARKER)
    _sync(folder)


def _verify(folder: Path) -> dict[str, Any]:
    """The manifest of a step whose every byte is as written."""
    try:
        expected = (folder / _MARKER).read_bytes()
        if hashlib.sha256((folder / _MANIFEST).read_bytes()).hexdigest().encode() != expected:
            raise Damaged(f"{_MANIFEST} or {_MARKER} changed")
        manifest = read_json(folder / _MANIFEST)
        for name, digest in manifest["files"].items():
            if sha256_file(folder / name) != digest:
                raise Damaged(f"{name} changed")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).relative_to(folder)} is missing") from None
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    return manifest


def _compare(wanted: dict[str, Any], stored: dict[str, Any], prefix: str, where: Path) -> None:
    """Raise a UserError that names the first leaf in which the two trees differ."""
    inside = {name for name in stored if not prefix or name == prefix or name.startswith(prefix + ".")}
    advice = "the checkpoint belongs to another model or configuration; choose another output_dir"
    for name, leaf in wanted.items():
        if name not in inside:
            raise UserError(f"{where}: {name} is missing; {advice}")
        has, needs = stored[name], {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for what in ("shape", "dtype"):
            if has[what] != needs[what]:
                raise UserError(f"{where}: {name} has {what} {has[what]}, {needs[what]} is needed; {advice}")
    if left_over := sorted(inside - wanted.keys()):
        raise UserError(f"{where}: {left_over[0]} is not part of this model ({len(left_over)} such); {advice}")


def _read_arrays(folder: Path, wanted: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Load the wanted leaves only, each placed as its target says."""
    ocp = _orbax()
    empty = {name: leaf for name, leaf in wanted.items() if leaf.size == 0}
    target = {
        name: _placed(wanted[name]) if name in wanted else ocp.PLACEHOLDER
        for name, leaf in stored.items()
        if 0 not in leaf["shape"]
    }
    with _quiet():
        arrays = ocp.load(folder, target) if target.keys() & wanted.keys() else {}
    zeros = {
        name: np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, np.ndarray) else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in empty.items()
    }
    return {name: zeros[name] if name in zeros else arrays[name] for name in wanted}


def _placed(leaf: Any) -> Any:
    """Give an abstract leaf without a sharding the default device; Orbax wants one."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return leaf


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _orbax() -> Any:
    """Orbax's v1 interface, imported late (a second); it still lives under `experimental`, so only here."""
    with _quiet():
        import orbax.checkpoint.experimental.v1 as ocp
    return ocp


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's log lines and its warnings about unfinished coroutines off stderr; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
