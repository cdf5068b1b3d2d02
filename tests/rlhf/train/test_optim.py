"""The shared optimiser against optax's own adamw and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf.run.record import traced
from rlhf.train import optim
from tests.rlhf.train import steps


def make_optimizer(schedule: str, warmup_steps: int = 4) -> optim.OptimizerConfig:
    changes = dict(weight_decay=0.05, beta1=0.8, beta2=0.95, max_grad_norm=0.7)
    return traced(
        steps.make_optimizer(learning_rate=0.1, schedule=schedule, warmup_steps=warmup_steps, **changes)
    )


NUM_STEPS = jnp.float32(20)


def optax_schedule(kind: str):
    """Warm-up reaches the full rate at step 3, the decay starts at step 4 and ends at 20."""
    decay = {
        "constant": optax.constant_schedule(0.1),
        "linear": optax.linear_schedule(0.1, 0.0, 16),
        "cosine": optax.cosine_decay_schedule(0.1, 16),
    }[kind]
    return optax.join_schedules([optax.linear_schedule(0.025, 0.125, 4), decay], [4])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_twenty_steps_equal_optax(kind):
    optimizer = make_optimizer(kind)
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=5), jnp.float32),
    }
    wanted = params
    reference = optax.chain(
        optax.clip_by_global_norm(0.7),
        optax.adamw(optax_schedule(kind), b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.05),
    )
    reference_state = reference.init(params)
    state = optim.init_state(params, optimizer, jax.random.key(0))
    step = jax.jit(optim.apply_gradients)
    compiled = None
    for number in range(20):
        # Some gradients are clipped, some are not.
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.2, jnp.float32), params)
        updates, reference_state = reference.update(grads, reference_state, wanted)
        wanted = optax.apply_updates(wanted, updates)
        state, metrics = step(state, grads, optimizer, NUM_STEPS)
        compiled = compiled or step._cache_size()
        np.testing.assert_allclose(metrics["train/learning_rate"], optax_schedule(kind)(number), rtol=1e-5)
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
        np.testing.assert_allclose(metrics["train/grad_norm"], np.linalg.norm(flat), rtol=1e-5)
    assert int(state.step) == 20
    for name in params:
        np.testing.assert_allclose(state.params[name], wanted[name], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["train/param_norm"], optax.tree.norm(wanted), rtol=1e-5)
    assert step._cache_size() == compiled


def test_no_warm_up_starts_at_the_full_rate():
    rate = optim.learning_rate(jnp.int32(0), make_optimizer("cosine", warmup_steps=0), NUM_STEPS)
    np.testing.assert_allclose(rate, 0.1, rtol=1e-6)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="cosin"):
        make_optimizer("cosin")


@pytest.mark.parametrize("num_micro", [1, 3])
def test_micro_batches_add_up(num_micro):
    inputs = jnp.arange(2.0 * num_micro).reshape(num_micro, 2)

    def gradient(one):
        return {"a": one, "b": one.sum()}, {"metric": one[0]}

    total, metrics = jax.jit(lambda inputs: optim.accumulate(gradient, inputs))(inputs)
    np.testing.assert_allclose(total["a"], inputs.sum(axis=0))
    np.testing.assert_allclose(total["b"], inputs.sum())
    np.testing.assert_allclose(metrics["metric"], inputs[:, 0])


def test_one_micro_batch_has_no_loop():
    program = jax.jit(lambda inputs: optim.accumulate(lambda one: (jnp.sin(one), one.sum()), inputs))
    assert "while" not in program.lower(jnp.ones((1, 4))).as_text()
    assert "while" in program.lower(jnp.ones((2, 4))).as_text()
