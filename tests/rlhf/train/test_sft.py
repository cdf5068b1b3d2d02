"""The supervised step: its loss by hand, packing and accumulation that change nothing, full training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.adapters import AdapterSpec
from rlhf.policy.batches import SFTRows, microbatches
from rlhf.policy.packing import Sequences, fill_rows, pack
from rlhf.run.record import traced
from rlhf.train import optim
from rlhf.train import sft_step as sft
from rlhf.train.sft import trained_parts
from tests.rlhf import tiny
from tests.rlhf.train import steps

EXAMPLES = {
    Sequences(p, (c,)): 1.0 + index % 3
    for index, (p, c) in enumerate(
        (p, c) for p, row in zip(steps.PROMPTS, steps.COMPLETIONS, strict=True) for c in row
    )
}


@pytest.fixture(scope="module")
def policy():
    return tiny.make_policy(tiny.make_base(tiny.make_config()), AdapterSpec(2, 2.0))


def make_batch(row_length: int, accumulation: int) -> sft.SFTBatch:
    """All examples, rows of at most `row_length`, padded with empty rows to a multiple of `accumulation`."""
    rows = fill_rows(EXAMPLES, row_length)
    packed = pack(rows)
    weight = np.zeros(packed.member.shape[:2], np.float32)
    for index, row in enumerate(rows):
        weight[index, : len(row)] = [EXAMPLES[group] for group in row]
    index = np.resize(np.arange(len(rows)), -(-len(rows) // accumulation) * accumulation)
    weight = np.where((np.arange(len(index)) < len(rows))[:, None], weight[index], 0.0)
    rows = SFTRows(packed.take(index), weight)
    return sft.SFTBatch(*microbatches((rows, None), np.arange(len(index)), accumulation))


def make_settings(**optimizer) -> sft.SFTSettings:
    return traced(sft.SFTSettings(optimizer=steps.make_optimizer(**optimizer), num_steps=100))


def run(policy, batch, part="lora"):
    settings = make_settings()
    frozen = policy.params._replace(base=None) if part == "base" else policy.params
    state = optim.init_state(
        {part: jax.tree.map(jnp.array, getattr(policy.params, part))}, settings.optimizer, jax.random.key(0)
    )
    leaves = jax.tree.leaves(state.params)
    program = sft.SFTProgram(policy.graphdef)
    state, metrics = sft.step(state, batch, frozen, settings, program=program)
    assert all(leaf.is_deleted() for leaf in leaves)
    return state, metrics


def by_hand(policy):
    arrays = tiny.separate_rows([g.prompt for g in EXAMPLES], [g.completions[0] for g in EXAMPLES])
    weight = np.array(list(EXAMPLES.values()))
    tokens = np.array([len(g.completions[0]) for g in EXAMPLES])

    def loss(parts):
        logprobs = tiny.separate_logprobs(policy.graphdef, policy.params._replace(**parts), arrays)
        return -jnp.sum(weight * logprobs) / np.sum(weight * tokens)

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("part", ["lora", "base"])
def test_loss_and_gradient_by_hand(policy, part):
    _, metrics = run(policy, make_batch(24, 1), part)
    wanted, grads = by_hand(policy)({part: getattr(policy.params, part)})
    np.testing.assert_allclose(metrics["train/loss/total"], wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["train/grad_norm"], optim.optax.tree.norm(grads), rtol=1e-4)


def test_packing_and_accumulation_change_nothing(policy):
    """Micro-batches hold unequal numbers of tokens; the mean is over all of the batch's."""
    whole, metrics = run(policy, make_batch(24, 1))
    state, other = run(policy, make_batch(10, 2))
    np.testing.assert_allclose(other["train/loss/total"], metrics["train/loss/total"], rtol=1e-5)
    np.testing.assert_allclose(other["train/grad_norm"], metrics["train/grad_norm"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16_full_training_follows_float32():
    """Steps of 2e-4 are lost when added to a bfloat16 weight, so trained weights are kept in float32."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        policy = tiny.make_policy(tiny.make_base(tiny.make_config(), dtype=dtype), None)
        settings = make_settings(learning_rate=2e-4, weight_decay=0.0)
        trained = trained_parts(policy.params, full=True)
        state = optim.init_state(jax.tree.map(jnp.array, trained), settings.optimizer, jax.random.key(0))
        program = sft.SFTProgram(policy.graphdef, dtype)
        batch, frozen = make_batch(64, 1), policy.params._replace(base=None)
        for _ in range(100):
            state, metrics = sft.step(state, batch, frozen, settings, program=program)
        losses[dtype] = float(metrics["train/loss/total"])
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["float32"] < 2.5  # from 4.1
