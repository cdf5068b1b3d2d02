"""The compiled update equals its plain-loop twin: same rollout in, same parameters out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.train.rl.rollout import valued_from
from rlhf.train.rl.update import update
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup, twin

PROMPTS = [[1, 4, 5], [1, 9, 3, 7, 8]]
# A large eps: entries whose gradient is nothing but rounding must not become whole steps.
OPTIMIZER = {"learning_rate": 0.02, "weight_decay": 0.1, "eps": 1e-3, "max_grad_norm": 0.5}
CASES = {
    "ppo, shared critic": {
        "people": "two",
        "critic": {"stop_gradient": False, "value_clip": 0.005, "rate": 3.0, "coef": 0.7},
        "algorithm": {
            "epochs": 2,
            "minibatches": 2,
            "entropy_coef": 0.03,
            "missing_eos_penalty": 0.4,
            "discount": 0.97,
            "gae_lambda": 0.8,
            "clip_low": 0.02,
            "clip_high": 5.0,  # the steps are long: only unlike limits can be told apart
        },
    },
    "ppo, own critic, whitened, early stop": {
        "people": "two",
        "critic": {"backbone": "separate", "from_rewards": True},
        "algorithm": {"scaling": "batch", "centre": False, "aggregation": "sequence", "epochs": 3},
        "kl": {"estimator": "k3", "stop_nats": 2e-3},
        "per_token": True,
    },
    "rloo, nobody, KL in the loss": {
        "people": [1.0],
        "algorithm": {"kind": "rloo", "aggregation": "constant", "minibatches": 2},
        "kl": {"place": "loss", "estimator": "k3"},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_update_equals_its_twin(name):
    case = dict(CASES[name])
    people = steps.make_population() if case["people"] == "two" else case["people"]
    per_token = case.pop("per_token", False)
    case |= {"people": people, "scale": 0.15, "optimizer": OPTIMIZER}
    case["kl"] = {"coef": 0.3} | case.get("kl", {})
    task = setup.make_task(prompts=PROMPTS, groups=2, group_size=2, max_new_tokens=3, **case)
    rng = np.random.default_rng(0)
    if task.settings.critic is not None:  # values that are not all zero
        head = task.state.params["critic"]["w2"]
        task.state.params["critic"]["w2"] = jnp.asarray(0.3 * rng.normal(size=head.shape), jnp.float32)
    rollout = setup.made_up_rollout(task)
    num_basis = rollout.coef.shape[1]
    if task.settings.critic is not None and task.settings.critic.from_rewards:
        with pytest.raises(ValueError, match="values start from rewards"):
            arguments = (rollout, jnp.zeros((4, num_basis)), task.frozen, task.settings)
            update(task.state, *arguments, program=task.program)
        rollout = valued_from(rollout, jnp.asarray(rng.normal(size=(4, 3, num_basis)), jnp.float32))
    shape = (4, 3, num_basis) if per_token else (4, num_basis)
    rewards = jnp.asarray(rng.normal(size=shape), jnp.float32)
    expected, made = twin.update(task, rollout, rewards)
    before = jax.tree.map(np.asarray, task.state.params)
    state, metrics = update(task.state, rollout, rewards, task.frozen, task.settings, program=task.program)
    flat, _ = jax.tree_util.tree_flatten_with_path(state.params)
    for (path, leaf), goal, old in zip(flat, jax.tree.leaves(expected), jax.tree.leaves(before), strict=True):
        np.testing.assert_allclose(leaf, goal, atol=1e-4, err_msg=jax.tree_util.keystr(path))
        assert np.abs(np.asarray(leaf) - old).max() > 5e-4, f"{path} was not trained"
    assert float(metrics["train/clip_share"]) > 0
    algorithm = task.settings.algorithm
    total = algorithm.epochs * algorithm.minibatches
    assert float(metrics["train/stopped_share"]) == pytest.approx(1 - made / total)
    assert (made < total) == ("early stop" in name)
    assert int(state.step) == total and int(state.iteration) == 1
