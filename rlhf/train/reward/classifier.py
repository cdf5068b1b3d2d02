"""The trained reward model as a Hugging Face directory that `…ForSequenceClassification` loads."""

from pathlib import Path

import jax
import numpy as np

from rewards import hashed
from rlhf.models.load import read_hf_config
from rlhf.models.save import save_hf
from rlhf.policy import store as policy_store

HEAD = "head"
AGAIN = "train the reward model again in another output_dir"


def save_classifier(directory: Path, run: Path) -> Path:
    """Write the tuned model of a training run with its shared direction as the one label `reward`; once written it stays.

    Raises:
      UserError: the run is damaged, or the disk is full.
    """
    if directory.is_dir():
        return directory
    base = policy_store.load_base(run, adapter_layers=None, dtype="float32")
    head, _ = hashed.load(run, HEAD, lambda record: {"shared": (base.config.width, 1)}, AGAIN)
    tree = jax.tree.map(np.asarray, base.tree) | {"score": {"kernel": head["shared"]}}
    return save_hf(directory, tree, read_hf_config(base.directory), base.directory, labels=("reward",))
