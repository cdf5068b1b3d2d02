"""The files of one checkpoint: written in order, synced, hashed, checked before they are read.

checkpoints/00000300/
  arrays/          Orbax
  manifest.json    {step, leaves: {name: {shape, dtype}}, files: {path: sha256}, meta}
  COMPLETE         sha256 of manifest.json
"""

import contextlib
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from rewards.files import JSONObject, read_json, sha256_file, write_json

Leaf = jax.Array | np.ndarray
Wanted = Leaf | jax.ShapeDtypeStruct

ARRAYS, MANIFEST, _MARKER = "arrays", "manifest.json", "COMPLETE"


class Damaged(Exception):
    """A checkpoint on disk that is not what was written; the message says which file and how."""


def save_arrays(folder: Path, leaves: dict[str, Leaf]) -> None:
    """The arrays, each part by the process that holds it; all processes of a job call it."""
    ocp = _orbax()
    with _quiet():
        # Orbax refuses arrays without elements; the manifest alone says all about those.
        ocp.save(
            folder / ARRAYS, {name: leaf for name, leaf in leaves.items() if leaf.size} or {"": np.zeros(1)}
        )


def seal_step(folder: Path, step: int, leaves: dict[str, Leaf], meta: JSONObject) -> None:
    """After the arrays the manifest over them, then the marker over the manifest; each synced before the next."""
    files = {}
    for path in sorted(p for p in (folder / ARRAYS).rglob("*") if p.is_file()):
        sync(path)
        files[str(path.relative_to(folder))] = sha256_file(path)
    described = {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()}
    write_json(folder / MANIFEST, {"step": step, "leaves": described, "files": files, "meta": meta})
    sync(folder / MANIFEST)
    (folder / _MARKER).write_text(sha256_file(folder / MANIFEST))
    sync(folder / _MARKER)
    sync(folder)


def verify(folder: Path) -> JSONObject:
    """The manifest of a step whose every byte is as written."""
    try:
        expected = (folder / _MARKER).read_bytes()
        if hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest().encode() != expected:
            raise Damaged(f"{MANIFEST} or {_MARKER} changed")
        manifest = read_json(folder / MANIFEST)
        for name, digest in manifest["files"].items():
            if sha256_file(folder / name) != digest:
                raise Damaged(f"{name} changed")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).relative_to(folder)} is missing") from None
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None
    return manifest


def read_arrays(folder: Path, wanted: dict[str, Wanted], stored: JSONObject) -> dict[str, Leaf]:
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
        name: np.zeros(leaf.shape, leaf.dtype)
        if isinstance(leaf, np.ndarray)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for name, leaf in empty.items()
    }
    return {name: zeros[name] if name in zeros else arrays[name] for name in wanted}


def _placed(leaf: Wanted) -> Wanted:
    """Give an abstract leaf without a sharding the default device; Orbax wants one."""
    if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    return leaf


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _orbax() -> ModuleType:
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
