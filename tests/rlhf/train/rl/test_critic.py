"""The critic: what it starts from, what it sees, and which weights its loss may move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.policy import scoring
from rlhf.policy.logprobs import PolicyParams
from rlhf.train.rl import critic as critics
from rlhf.train.rl import rollout as rollouts
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup


def value_gradients(**critic):
    """Values of a fresh critic, those with random heads for two people, and the gradient of their sum in all weights."""
    task = setup.make_task(
        prompts=[[1, 4, 5], [1, 9, 3, 7]],
        people=steps.make_population(),
        groups=2,
        group_size=2,
        critic=critic,
        scale=0.15,
    )
    parts = dict(task.state.params)
    head = parts["critic"]["w2"]
    tokens = jnp.concatenate([task.prompts.tokens, jnp.full((4, 3), 6)], axis=1)
    rows = scoring.rows_of(tokens, task.prompts.starts, jnp.ones((4, 2)), 3, group_size=2)
    rows = scoring.with_lower_states(task.program.graphdef, task.frozen, rows)

    @jax.jit
    def values(parts, z):
        parts = dict(parts)
        own = parts.pop("critic")
        params = task.frozen._replace(**parts)
        return rollouts.score(task.settings, task.program, params, own, rows._replace(z=z))[2]

    z = jnp.ones((2, 2))
    fresh = values(parts, z)
    rng = np.random.default_rng(0)
    moved = {
        **parts,
        "critic": {**parts["critic"], "w2": jnp.asarray(rng.normal(size=head.shape), jnp.float32)},
    }
    gradient = jax.jit(jax.grad(lambda parts: jnp.sum(values(parts, z) ** 2)))(moved)
    return fresh, (values(moved, z), values(moved, -z)), gradient


def size(tree) -> float:
    return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("critic", "policy_moves"),
    [({}, False), ({"stop_gradient": False}, True), ({"backbone": "separate"}, False)],
)
def test_values_start_at_zero_see_the_person_and_reach_only_their_own_weights(critic, policy_moves):
    fresh, (one, other), gradient = value_gradients(**critic)
    assert fresh.shape == (4, 3, 4) and not np.asarray(fresh).any()
    assert (np.abs(one - other).max(axis=(0, 1)) > 1e-3).all(), "a channel does not see z"
    assert (size({k: gradient[k] for k in ("lora", "conditioner")}) > 0) == policy_moves
    own = dict(gradient["critic"])
    assert all(size(own.pop(name)) > 0 for name in ("w1", "b1", "w2", "b2"))
    assert set(own) == ({"lora", "conditioner"} if "backbone" in critic else set())
    assert all(size(part) > 0 for part in own.values())


def test_a_separate_critic_begins_with_copies_of_the_policys_adapters():
    task = setup.make_task(
        prompts=[[1, 4]], people=steps.make_population(), groups=1, critic={"backbone": "separate"}, scale=0.1
    )
    own = task.state.params["critic"]
    for name in ("lora", "conditioner"):
        copies, originals = jax.tree.leaves(own[name]), jax.tree.leaves(task.state.params[name])
        for copy, original in zip(copies, originals, strict=True):
            np.testing.assert_array_equal(copy, original)
            assert copy is not original


def test_a_separate_critic_without_adapters_is_refused():
    nothing, key = PolicyParams(None, None, None), jax.random.key(0)
    with pytest.raises(ValueError, match="adapters"):
        critics.init_critic(critics.CriticConfig(), nothing, 16, key, num_basis=2, personal=True)
