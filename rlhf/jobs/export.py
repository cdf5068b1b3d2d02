"""`chorus export`: one person's policy, or everybody's aggregate, as a plain Hugging Face directory.

The conditioner is linear in z, so for a fixed person it is an ordinary weight change and folds into the kernels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards.errors import UserError
from rlhf import policy_store
from rlhf.jobs.generate import person_z
from rlhf.models.load import read_hf_config
from rlhf.models.save import save_hf


def export(
    policy: str, output: str, *, user: str | None = None, coefficients: Sequence[float] | None = None
) -> dict[str, Any]:
    """Write a directory that transformers loads; returns its path and whose policy it holds.

    Raises:
      UserError: `output` exists, the policy is unusable, or the person is unknown.
    """
    if Path(output).exists():
        raise UserError(f"--output {output}: exists already; choose a directory that does not exist")
    loaded = policy_store.load_policy(policy)
    z = person_z(loaded, policy, user, coefficients)
    tree = jax.tree.map(np.asarray, policy_store.merge_adapters(loaded, z))
    base = loaded.base
    save_hf(output, tree, read_hf_config(base.directory), base.directory)
    return {"path": str(output), "user": user, "z": None if z is None else z.tolist()}
