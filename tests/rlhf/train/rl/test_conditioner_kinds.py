"""Reinforcement learning only hands z on, so one compiled iteration is right with every kind of conditioner."""

import jax
import numpy as np
import pytest

from rlhf.models.adapters import AdapterSpec, Words
from rlhf.train.rl.rollout import Rollout
from rlhf.train.rl.update import iterate
from tests.rlhf import tiny
from tests.rlhf.train import steps
from tests.rlhf.train.rl.setup import make_task

LORA = {"lora_rank": 2, "lora_alpha": 2.0, "num_basis": steps.K}
WORDS = Words(tuple(tuple((20 + i, 21) if i != 3 else () for i in range(7)) for _ in range(steps.K)), (1,))
SPECS = {  # the two that reach beyond the layers
    "logit_heads": AdapterSpec(**LORA, kind="logit_heads", basis_rank=2),
    "text": AdapterSpec(**LORA, kind="text", words=WORDS),
}


def own_letter(arrays: None, rollout: Rollout) -> jax.Array:
    """φ_k counts how often token 8 + k was said."""
    return jax.numpy.stack([(rollout.completions == 8 + k).sum(axis=1) for k in range(steps.K)], axis=1) * 1.0


@pytest.mark.parametrize("kind", SPECS)
def test_an_iteration_samples_scores_and_moves_the_same_policy(kind):
    task = make_task(
        prompts=[[1, 5, 6], [1, 7]],
        people=steps.make_population(),
        groups=4,
        spec=SPECS[kind],
        adapter_layers=None if kind == "text" else 2,
        scale=0.3,
    )
    prompts, people, frozen, sampling, stop, settings = task.arguments()
    before = jax.tree.map(np.asarray, task.state.params)
    state, metrics, rollout, _ = iterate(
        task.state,
        prompts,
        people,
        frozen,
        None,
        sampling,
        stop,
        settings,
        program=task.program,
        reward=own_letter,
    )
    mask = np.asarray(rollout.mask)
    assert np.abs(rollout.z).max() > 0.25
    np.testing.assert_allclose(
        np.asarray(rollout.logprobs)[mask], np.asarray(rollout.sampler_logprobs)[mask], atol=1e-4
    )
    plain = tiny.make_policy(tiny.make_base(tiny.make_config()), None)
    said = [
        [int(token) for token in row[own]]
        for row, own in zip(np.asarray(rollout.completions), mask, strict=True)
    ]
    asked = [[1, 5, 6] if row // 4 % 2 == 0 else [1, 7] for row in range(16)]
    reference = tiny.separate_logprobs(plain.graphdef, plain.params, tiny.separate_rows(asked, said))
    np.testing.assert_allclose(np.asarray(rollout.ref_logprobs).sum(axis=1), reference, atol=1e-4)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
    changes = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before, state.params)
    assert all(change > 0 for change in jax.tree.leaves(changes))
