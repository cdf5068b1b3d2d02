"""Checkpoints that are whole, checked, and named when they are not.

Orbax writes the arrays. Around it stands what it lacks (measured with 0.12.8: it loads float32 as bfloat16,
and a flipped bit without a word, and names no leaf when trees differ): a manifest with the sha256 of every
file and the shape and type of every leaf, a completion marker written last, and a rename that publishes the
step (`rlhf.train.checkpoint_files`).
"""

import errno
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rewards.errors import UserError
from rewards.files import JSONObject, sha256_file
from rlhf.run import processes
from rlhf.train.checkpoint_files import (
    ARRAYS,
    MANIFEST,
    Damaged,
    Leaf,
    Wanted,
    read_arrays,
    save_arrays,
    seal_step,
    sync,
    verify,
)

_LOG = logging.getLogger("chorus")

_STEP = re.compile(r"^\d{8,}$")


def _discard(folder: Path) -> None:
    """Remove what a refused write has left; Orbax's threads may still be making files in it for a moment."""
    for pause in (0.0, 0.1, 0.2, 0.4, 0.8):
        time.sleep(pause)
        shutil.rmtree(folder, ignore_errors=True)


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

    def save(self, step: int, tree: PyTree, meta: JSONObject | None = None) -> None:
        """Write one step. A process killed here at any instant leaves the earlier steps as they were.

        Later steps (of a past that damage made us leave) and those beyond `keep` are removed afterwards.

        Args:
          step: number of finished optimiser steps.
          tree: arrays (JAX or NumPy; typed PRNG keys too) in any pytree.
          meta: JSON values: data position, counters, configuration hash.
        Raises:
          UserError: the disk is full or refuses; the earlier steps stand.
        """
        leaves = _named_leaves(tree)
        temporary = Path(processes.from_writer(lambda: str(self._begun(step, leaves))))
        try:
            # Every process writes the parts that lie with it, and a disk may refuse one of them only.
            processes.together(lambda: self._refusing(step, lambda: save_arrays(temporary, leaves)))
            processes.from_writer(
                lambda: self._refusing(step, lambda: self._finished(temporary, step, leaves, meta or {}))
            )
        finally:
            if processes.is_writer() and temporary.exists():
                _discard(temporary)

    def _begun(self, step: int, leaves: dict[str, Leaf]) -> Path:
        """The folder in which a step is written before it has a name."""
        self._clean()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._check_space(leaves)
            return Path(tempfile.mkdtemp(dir=self.directory, prefix=f".{step:08d}.", suffix=".tmp"))
        except OSError as error:
            raise self._refused(step, error.strerror) from None

    def _finished(self, temporary: Path, step: int, leaves: dict[str, Leaf], meta: JSONObject) -> None:
        """Seal the step, give it its name, and remove those that it makes superfluous."""
        seal_step(temporary, step, leaves, meta)
        self._publish(temporary, step)
        for other in self.steps():
            if other > step or other not in [s for s in self.steps() if s <= step][-self.keep :]:
                self._remove(self._path(other))

    def _refusing(self, step: int, write: Callable[[], None]) -> None:
        """Write; what the system refuses becomes one line."""
        try:
            write()
        except OSError as error:
            raise self._refused(step, error.strerror) from None
        except ValueError as error:  # tensorstore reports the system's errors as text
            if "os_error_code" not in str(error) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = "No space left on device" if "RESOURCE_EXHAUSTED" in str(error) else "the disk refused"
            raise self._refused(step, reason) from None

    def restore(
        self, target_tree: PyTree, before: int | None = None
    ) -> tuple[int, PyTree, JSONObject] | None:
        """Load the newest good step → (step, tree, meta), or None when there is no step at all.

        Damaged steps are named on stderr and passed over.

        Args:
          target_tree: pytree of arrays or `jax.ShapeDtypeStruct` that says what is expected; where a leaf has
            a sharding, the array is placed so. NumPy leaves come back as NumPy.
          before: only steps that are smaller than this.
        Raises:
          UserError: no step is good; or a leaf is missing, left over, or of another shape or type than
            `target_tree` says (the leaf is named).
        """
        wanted = _named_leaves(target_tree)
        if (found := processes.from_writer(lambda: self._newest_good(before))) is None:
            return None
        step, manifest = found
        _compare(wanted, manifest["leaves"], self._path(step))
        arrays = read_arrays(self._path(step) / ARRAYS, wanted, manifest["leaves"])
        structure = jax.tree_util.tree_structure(target_tree)
        tree = jax.tree_util.tree_unflatten(structure, [arrays[name] for name in wanted])
        return step, tree, manifest["meta"]

    def read(self, step: int, target_tree: PyTree) -> PyTree:
        """Some leaves of one step, in the structure of `target_tree`; leaves that it does not name are passed over.

        Args:
          target_tree: as for `restore`; types are those that were stored.
        Raises:
          UserError: no such step (those that are there are named), a damaged one, or a leaf that is missing or of another shape.
        """
        if step not in (steps := self.steps()):
            there = f"there: {', '.join(map(str, steps))}" if steps else "there is none"
            raise UserError(f"{self.directory}: no checkpoint of step {step}; {there}")
        try:
            stored = verify(self._path(step))["leaves"]
        except Damaged as damage:
            raise UserError(
                f"{self._path(step)}: damaged ({damage}); restore it or name another step"
            ) from None
        wanted: dict[str, Wanted] = {
            name: jax.ShapeDtypeStruct(
                leaf.shape, jnp.dtype(stored[name]["dtype"]) if name in stored else leaf.dtype
            )
            for name, leaf in _named_leaves(target_tree).items()
        }
        _compare(wanted, {name: stored[name] for name in wanted if name in stored}, self._path(step))
        arrays = read_arrays(self._path(step) / ARRAYS, wanted, stored)
        structure = jax.tree_util.tree_structure(target_tree)
        return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in wanted])

    def identity(self, step: int) -> str:
        """sha256 of a step's manifest, which holds the hashes of its arrays; the step is there."""
        return sha256_file(self._path(step) / MANIFEST)

    def _newest_good(self, before: int | None = None) -> tuple[int, JSONObject] | None:
        """The newest good step and its manifest; a UserError when there are steps and none is good."""
        problems: list[str] = []
        for step in reversed([step for step in self.steps() if before is None or step < before]):
            try:
                manifest = verify(self._path(step))
            except Damaged as damage:
                problems.append(f"step {step} ({damage})")
                continue
            if problems:
                _LOG.warning(f"{self.directory}: damaged: {', '.join(problems)}; using step {step} instead")
            return step, manifest
        if problems:
            raise UserError(
                f"{self.directory}: no usable checkpoint: {', '.join(problems)}; "
                "remove this folder to start again, or restore it from a copy"
            )
        return None

    def _publish(self, temporary: Path, step: int) -> None:
        """Move the finished step to its name; a step of that name (a damaged one) is moved aside first."""
        if self._path(step).exists():
            self._remove(self._path(step))
        os.rename(temporary, self._path(step))
        sync(self.directory)

    def _remove(self, path: Path) -> None:
        """Delete a step: out of sight by one rename, then file by file; a kill leaves no half step."""
        trash = Path(tempfile.mkdtemp(dir=self.directory, prefix=".old.", suffix=".tmp"))
        os.rename(path, trash / path.name)
        shutil.rmtree(trash, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what killed processes left."""
        for path in self.directory.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _check_space(self, leaves: dict[str, Leaf]) -> None:
        needed = sum(_nbytes(leaf) for leaf in leaves.values())
        if shutil.disk_usage(self.directory).free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {os.strerror(errno.ENOSPC).lower()}")

    def _refused(self, step: int, reason: str | None) -> UserError:
        return UserError(
            f"{self._path(step)}: cannot save the checkpoint ({reason}); free some space and run the same "
            "command again, it resumes from the last good step"
        )

    def _path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"


def _named_leaves(tree: PyTree) -> dict[str, PyTree]:
    """Leaves under dotted names, in tree order; names are what messages and the manifest speak of."""
    named: dict[str, PyTree] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = ".".join(_part(entry) for entry in path) or "value"
        if name in named:
            raise ValueError(f"two leaves of the tree are both called {name}")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name}: a checkpoint holds arrays, not {type(leaf).__name__}; put it into meta")
        named[name] = leaf
    return named


def _part(entry: object) -> str:
    """One step of a tree path as text: dict key, attribute or position."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"unknown tree path entry {entry!r}")


def _nbytes(leaf: Leaf) -> int:
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return int(leaf.size) * leaf.dtype.itemsize


def _compare(wanted: dict[str, Wanted], stored: JSONObject, where: Path) -> None:
    """Raise a UserError that names the first leaf in which the two trees differ."""
    advice = "the checkpoint belongs to another model or configuration; choose another output_dir"
    for name, leaf in wanted.items():
        if name not in stored:
            raise UserError(f"{where}: {name} is missing; {advice}")
        has, needs = stored[name], {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for what in ("shape", "dtype"):
            if has[what] != needs[what]:
                raise UserError(f"{where}: {name} has {what} {has[what]}, {needs[what]} is needed; {advice}")
    if left_over := sorted(stored.keys() - wanted.keys()):
        raise UserError(
            f"{where}: {left_over[0]} is not part of this model ({len(left_over)} such); {advice}"
        )
