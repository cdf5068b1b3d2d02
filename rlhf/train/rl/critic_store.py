"""The critic of a finished PPO run: `critic/critic.safetensors` and `critic/critic.json`, written and read strictly."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rewards.basis.store import read_tensors
from rewards.errors import UserError
from rewards.files import atomic_path, read_json, sha256_file, write_json
from rlhf.policy.store import Base
from rlhf.train.rl.critic import Critic, CriticConfig

FOLDER, TENSORS, RECORD = "critic", "critic.safetensors", "critic.json"
YOUNGER = {"from_rewards": False}  # what a spec means that was stored before it had these


def made_for(base: Base, names: tuple[str, ...], rewards: str | None = None) -> dict[str, Any]:
    """What a critic's numbers mean something for: the base under its adapters, and the outputs it values.

    Args:
      rewards: hash of the reward run, where values are what it says plus what was learned; else None.
    """
    return {"base": base.fingerprint, "outputs": list(names)} | ({"rewards": rewards} if rewards else {})


def spec_of(config: CriticConfig, num_basis: int, personal: bool) -> dict[str, Any]:
    """What has to agree for one critic's tensors to be another's; arguments as of `critic.init_critic`."""
    return {
        "num_basis": num_basis,
        "sees_person": personal,
        "hidden": config.hidden,
        "separate": config.separate,
        "stop_gradient": config.stop_gradient,
        "from_rewards": config.from_rewards,
    }


def save(directory: Path, spec: dict[str, Any], critic: Critic, purpose: dict[str, Any]) -> str:
    """Write the critic of a run, with what it was `made_for`; returns the sha256 of its tensors. The record comes last."""
    path = directory / FOLDER / TENSORS
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in _named(critic).items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    digest = sha256_file(path)
    record = {"format": 1, "spec": spec, "made_for": purpose, "tensors_sha256": digest}
    write_json(directory / FOLDER / RECORD, record)
    return digest


def load(directory: str | Path, spec: dict[str, Any], template: Critic, purpose: dict[str, Any]) -> Critic:
    """Read the critic of a run.

    Args:
      spec: of this run (`spec_of`).
      template: a critic of the same kind (`rlhf.train.rl.critic.init_critic`), whose names, shapes and types are expected.
      purpose: what this run needs a critic for (`made_for`).
    Raises:
      UserError: no critic there, of another kind, damaged, or with a tensor missing, left over or of another shape.
    """
    path, record_path = Path(directory) / FOLDER / TENSORS, Path(directory) / FOLDER / RECORD
    if not record_path.is_file():
        raise UserError(
            f"{directory}: holds no critic ({FOLDER}/{RECORD}); give a finished run of chorus train ppo"
        )
    record = read_json(record_path)
    if YOUNGER | (record.get("spec") or {}) != spec:
        raise UserError(f"{record_path}: spec: {record.get('spec')} is another critic than {spec}")
    for name, wanted in purpose.items():
        found = (record.get("made_for") or {}).get(name)
        if found != wanted:
            raise UserError(
                f"{record_path}: {name}: {found}, this run has {wanted}; start from a critic of the same model and outputs"
            )
    if not path.is_file() or sha256_file(path) != record.get("tensors_sha256"):
        raise UserError(f"{path}: missing or damaged (sha256 differs from {RECORD}); train again")
    expected = {name: leaf.shape for name, leaf in _named(template).items()}
    tensors = read_tensors(path, expected, "this critic")
    structure = jax.tree_util.tree_structure(template)
    return jax.tree_util.tree_unflatten(structure, [jnp.asarray(tensors[name]) for name in expected])


def _named(critic: Critic) -> dict[str, Any]:
    """Leaves under dotted paths, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(critic)
    return {".".join(_part(entry) for entry in path): np.asarray(leaf) for path, leaf in leaves}


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"unknown tree path entry {entry!r}")
