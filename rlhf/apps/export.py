"""`chorus export`: one person's policy, or everybody's aggregate, as a plain Hugging Face directory.

For a fixed person a low-rank conditioner is an ordinary weight change and folds into the kernels; FiLM without shift
folds into the norms, logit heads into the unembedding (untied where it was tied); prefix and text do not fold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards.errors import UserError
from rlhf.apps.generate import person_z
from rlhf.models.load import read_hf_config
from rlhf.models.save import save_hf
from rlhf.policy import store as policy_store


def untied(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json of the same model with an unembedding of its own (in both places where Gemma 3 says so)."""
    changed = {**raw, "tie_word_embeddings": False}
    if "text_config" in raw:
        changed["text_config"] = {**raw["text_config"], "tie_word_embeddings": False}
    return changed


def export(
    policy: str, output: str, *, user: str | None = None, coefficients: Sequence[float] | None = None
) -> dict[str, Any]:
    """Write a directory that transformers loads; returns its path and whose policy it holds.

    Raises:
      UserError: `output` exists, the policy is unusable, the person is unknown, or their policy is no ordinary model.
    """
    if Path(output).exists():
        raise UserError(f"--output {output}: exists already; choose a directory that does not exist")
    loaded = policy_store.load_policy(policy)
    z = person_z(loaded, policy, user, coefficients)
    tree = jax.tree.map(np.asarray, policy_store.merge_adapters(loaded, z))
    base = loaded.base
    raw = read_hf_config(base.directory)
    raw = untied(raw) if base.config.tied and "head" in tree else raw
    save_hf(output, tree, raw, base.directory, end_ids=base.tokenizer.eos_ids)
    return {"path": str(output), "user": user, "z": None if z is None else z.tolist()}
