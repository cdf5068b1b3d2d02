"""The critic of a finished PPO run: `critic/critic.safetensors` and `critic/critic.json`, written and read strictly."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rewards import hashed
from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.mesh import place
from rlhf.policy.store import Base
from rlhf.run import processes
from rlhf.train.rl.critic import Critic, CriticConfig

FOLDER, NAME, RECORD = "critic", "critic", "critic.json"
YOUNGER = {"from_rewards": False}  # what a spec means that was stored before it had these


def made_for(base: Base, names: tuple[str, ...], rewards: str | None = None) -> JSONObject:
    """What a critic's numbers mean something for: the base under its adapters, and the outputs it values.

    Args:
      rewards: hash of the reward run, where values are what it says plus what was learned; else None.
    """
    return {"base": base.fingerprint, "outputs": list(names)} | ({"rewards": rewards} if rewards else {})


def spec_of(config: CriticConfig, num_basis: int, personal: bool) -> JSONObject:
    """What has to agree for one critic's tensors to be another's; arguments as of `critic.init_critic`."""
    return {
        "num_basis": num_basis,
        "sees_person": personal,
        "hidden": config.hidden,
        "separate": config.separate,
        "stop_gradient": config.stop_gradient,
        "from_rewards": config.from_rewards,
    }


def save(directory: Path, spec: JSONObject, critic: Critic, purpose: JSONObject) -> str:
    """Write the critic of a run, with what it was `made_for`; returns the sha256 of its tensors. The record comes last."""
    record = {"format": 1, "spec": spec, "made_for": purpose}
    tensors = _named(critic)
    return processes.from_writer(lambda: hashed.save(directory / FOLDER, NAME, tensors, record))


def identity(directory: str | Path) -> str:
    """Hash of a run's critic, whose record holds that of its tensors."""
    return hashed.record_identity(Path(directory) / FOLDER / RECORD)


def load(directory: str | Path, spec: JSONObject, template: Critic, purpose: JSONObject) -> Critic:
    """Read the critic of a run.

    Args:
      spec: of this run (`spec_of`).
      template: a critic of the same kind (`rlhf.train.rl.critic.init_critic`), whose names, shapes and types are expected.
      purpose: what this run needs a critic for (`made_for`).
    Raises:
      UserError: no critic there, of another kind, damaged, or with a tensor missing, left over or of another shape.
    """
    record_path = Path(directory) / FOLDER / RECORD
    if not record_path.is_file():
        raise UserError(
            f"{directory}: holds no critic ({FOLDER}/{RECORD}); give a finished run of chorus train ppo"
        )
    expected = {name: leaf.shape for name, leaf in _named(template).items()}

    def shapes(record: JSONObject) -> hashed.Shapes:
        if YOUNGER | (record.get("spec") or {}) != spec:
            raise UserError(f"{record_path}: spec: {record.get('spec')} is another critic than {spec}")
        for name, wanted in purpose.items():
            found = (record.get("made_for") or {}).get(name)
            if found != wanted:
                raise UserError(
                    f"{record_path}: {name}: {found}, this run has {wanted}; start from a critic of the same model and "
                    "outputs"
                )
        return expected

    tensors, _ = hashed.load(record_path.parent, NAME, shapes, "train again", whole="this critic")
    structure = jax.tree_util.tree_structure(template)
    return place.parameters(
        jax.tree_util.tree_unflatten(structure, [jnp.asarray(tensors[name]) for name in expected])
    )


def _named(critic: Critic) -> dict[str, np.ndarray]:
    """Leaves under dotted paths, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(critic)
    return {".".join(_part(entry) for entry in path): place.host(leaf) for path, leaf in leaves}


def _part(entry: object) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"unknown tree path entry {entry!r}")
