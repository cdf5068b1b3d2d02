"""A tiny world: a model, rewards of people with two tastes, and two policies trained with them."""

import dataclasses

import jax
import numpy as np
import pytest

import rewards
import rlhf
from tests.rlhf import tiny
from tests.rlhf.api.world import FIT, table


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder with model/, rewards/, a/, b/ and prompts.txt."""
    root = tmp_path_factory.mktemp("outputs")
    model = tiny.write_model(root / "model")
    prefs = rewards.read(table())
    rewards.fit(prefs.training, encoder=rlhf.encoder(model), **FIT).save(root / "rewards")
    fitted = rewards.load(root / "rewards")
    trained = rlhf.train_dpo(model, prefs.training, rewards=fitted, steps=1, learning_rate=1e-2, lora_rank=2)
    rng = np.random.default_rng(0)
    for name, size in (("a", 0.3), ("b", 0.1)):  # far from the model at once, instead of many steps
        params = trained.loaded.params
        moved = {}
        for part in ("lora", "conditioner"):
            leaves, tree = jax.tree.flatten(getattr(params, part))
            leaves = [leaf + size * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
            moved[part] = jax.tree.unflatten(tree, leaves)
        loaded = dataclasses.replace(trained.loaded, params=params._replace(**moved))
        dataclasses.replace(trained, loaded=loaded).save(root / name)
    (root / "prompts.txt").write_text("Which ?\nitem ?\nWhich item 3 ?\nWhich 5 ?\nitem 7\n3 ?\n")
    return root
