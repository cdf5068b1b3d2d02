"""Guardrails inside the compiled steps of all trainers: what a hacker learns, and that without them nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.models.adapters import AdapterSpec
from rlhf.phi.columns.config import ColumnConfig
from rlhf.policy.conditioning import UserShares
from rlhf.run.record import traced
from rlhf.train import dpo_step as dpo
from rlhf.train import optim
from rlhf.train.guardrails import of_rollouts, of_rows
from rlhf.train.guardrails.acts import GuardState
from rlhf.train.guardrails.config import (
    BehaviourConfig,
    CalibrationConfig,
    FloorConfig,
    GuardrailsConfig,
    HonestyConfig,
    TruthConfig,
    WorstConfig,
)
from rlhf.train.rl import update as updates
from rlhf.train.rl.config import GRPOConfig
from rlhf.train.rl.estimate import estimate
from tests.rlhf import tiny
from tests.rlhf.train import steps
from tests.rlhf.train.rl import setup

G = 4


def check(name, gate=None):
    return ColumnConfig(name=name, kind="function", function="f.py:f", gate=gate)


GATE = GuardrailsConfig(checks=(check("safe", 0.5),), refused=-1.0)
ALL = GuardrailsConfig(
    checks=(
        *map(check, ("agrees", "right", "corrects", "wrong", "sure", "short", "long")),
        check("safe", 0.5),
    ),
    honesty=HonestyConfig(check="corrects", where="wrong", confidence="sure"),
    calibration=CalibrationConfig(kinds=("short", "long")),
    behaviour=BehaviourConfig(check="agrees", penalty="both"),
    truth=TruthConfig(check="right"),
    floor=FloorConfig(),
    worst=WorstConfig(groups=2),
)


def make_task(guardrails, *, critic=None, **given):
    if critic is None:
        given = {"kl": {"place": "loss", "estimator": "k3"}} | given
        given["algorithm"] = {"entropy_coef": 0.01, "scaling": "none"} | given.get("algorithm", {})
    return setup.make_task(
        prompts=[[1, 4, 5], [1, 4, 5]],
        people=steps.make_population(),
        groups=2,
        group_size=G,
        guardrails=guardrails,
        critic=critic,
        optimizer={"max_grad_norm": 1e6},
        scale=0.1,
        **given,
    )


def learned(task, rollout, rewards, checks, **algorithm):
    state, metrics = updates.update(
        task.state,
        rollout,
        jnp.asarray(rewards, jnp.float32),
        task.frozen,
        task.settings,
        program=task.program,
        people=task.people,
        checks=None if checks is None else jnp.asarray(checks, jnp.float32),
    )
    return state, metrics


def hacked(task, seed=0):
    """A rollout, and rewards that grow with w·φ without end: φ is a large multiple of the person's coefficients."""
    rollout = setup.made_up_rollout(task, seed)
    size = 100.0 * np.arange(len(rollout.coef))[:, None]
    return rollout, size * np.asarray(rollout.coef)


@pytest.mark.parametrize("critic", [None, {"backbone": "shared"}])
def test_a_reward_hacker_that_fails_the_gate_gets_no_gradient(critic):
    """Not from the surrogate, nor from KL, entropy or the critic: the group does not exist."""
    task = make_task(GATE, critic=critic)
    rollout, rewards = hacked(task)
    _, metrics = learned(task, rollout, rewards, np.zeros((2 * G, 1)))
    assert metrics["train/guard/skipped_share"] == 1.0 and metrics["train/reward"] > 10
    assert metrics["train/grad_norm"] == 0.0 and metrics["train/loss/total"] == 0.0


def test_the_other_group_is_learned_from_as_if_the_hacker_were_not_there():
    task = make_task(GATE)
    rollout, rewards = hacked(task)
    checks = np.repeat([[1.0], [0.0]], G, axis=0)
    first = jax.device_get(learned(task, rollout, rewards, checks)[1])
    task = make_task(GATE)
    rewards[G:] *= -7
    second = jax.device_get(learned(task, rollout, rewards, checks)[1])
    assert first["train/grad_norm"] == second["train/grad_norm"] > 0


@pytest.mark.parametrize("critic", [None, {"backbone": "shared"}])
def test_within_a_group_the_best_paid_failure_has_the_lowest_advantage(critic):
    task = make_task(GATE, critic=critic)
    rollout, rewards = hacked(task)
    if critic:
        rollout = rollout._replace(values=jnp.zeros_like(rollout.values))
    rollout = rollout._replace(logprobs=rollout.ref_logprobs)
    passes = np.ones((2 * G, 1))
    passes[G - 1] = 0.0  # the one that w·φ pays most
    acts, _, _ = of_rollouts.guarded(
        GATE,
        task.state.guard,
        rollout,
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(passes),
        task.people,
        task.state.kl_coef,
        G,
    )
    rewards = jnp.asarray(rewards, jnp.float32)
    plain, guarded = (
        np.asarray(
            estimate(rollout, rewards, task.state.kl_coef, task.state.scale, task.settings, added).unscaled
        )
        for added in (None, acts.added.reshape(-1))
    )
    mask, first = np.asarray(rollout.mask), np.arange(G)
    last = mask[:G].sum(axis=1) - 1
    assert plain[first, last].argmax() == G - 1
    assert guarded[first, last].argmin() == G - 1
    np.testing.assert_array_equal(guarded[G:], plain[G:])


def test_rails_that_do_not_act_change_nothing():
    results = []
    for guardrails in (None, GATE):
        task = make_task(guardrails)
        rollout = setup.made_up_rollout(task)
        rewards = np.random.default_rng(0).normal(size=rollout.coef.shape)
        state, _ = learned(task, rollout, rewards, None if guardrails is None else np.ones((2 * G, 1)))
        results.append(jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *results)


def test_all_of_them_together_in_one_compiled_iteration():
    task = make_task(ALL)
    rollout = setup.made_up_rollout(task)
    rng = np.random.default_rng(0)
    state, before = task.state, updates.update._cache_size()
    for _ in range(3):
        rewards, checks = rng.normal(size=rollout.coef.shape), rng.integers(0, 2, (2 * G, len(ALL.checks)))
        state, metrics = learned(task._replace(state=state), rollout, rewards, checks)
        # The third compiles nothing.
    assert updates.update._cache_size() == before + 1
    own = {name: float(value) for name, value in metrics.items() if name.startswith("train/guard/")}
    assert len(own) == 20 and np.isfinite(list(own.values())).all()
    assert float(state.guard.reference[1]) == 3 and float(state.guard.floor) >= 0


PERSONAL = AdapterSpec(lora_rank=2, lora_alpha=2.0, num_basis=steps.K, basis_rank=2)


@pytest.fixture(scope="module")
def policy():
    return tiny.make_policy(tiny.make_base(tiny.make_config()), PERSONAL)


def dpo_step(policy, kind, guardrails, checks, basis=None):
    population, batch = steps.make_population(), steps.make_batch(policy)
    settings = dpo.DPOSettings(
        loss=steps.PreferenceLossConfig(kind=kind, dpo_beta=0.3),
        guardrails=guardrails,
        optimizer=steps.make_optimizer(max_grad_norm=1e6),
        num_steps=100,
    )
    trained = jax.tree.map(jnp.array, {"lora": policy.params.lora, "conditioner": policy.params.conditioner})
    state = optim.init_state(trained, traced(settings).optimizer, jax.random.key(0))
    if guardrails is not None:
        state = state._replace(guard=GuardState.start(guardrails, population))
        batch = batch._replace(checks=jnp.asarray(checks, jnp.float32))
    if basis is not None:
        batch = batch._replace(basis_rewards=basis(batch))
    program = dpo.DPOProgram(policy.graphdef, shares=UserShares(0.5, 0.5, 0, 0))
    return dpo.step(state, batch, policy.params, population, traced(settings), program=program)


def rows_of_checks(value, count=1):
    return np.full((1, steps.NUM_ROWS, steps.NUM_COMPLETIONS + 1, count), value, np.float32)


@pytest.mark.parametrize("kind", ["soft", "observed"])
def test_rows_in_which_nothing_passes_teach_nothing(policy, kind):
    _, metrics = dpo_step(policy, kind, GATE, rows_of_checks(0.0), lambda batch: 100.0 * batch.basis_rewards)
    assert metrics["train/guard/skipped_share"] == 1.0
    assert metrics["train/grad_norm"] == 0.0 and metrics["train/loss/total"] == 0.0


def test_dpo_without_acting_rails_is_dpo(policy):
    plain, _ = dpo_step(policy, "soft", None, None)
    passed, _ = dpo_step(policy, "soft", GATE, rows_of_checks(1.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain.params, passed.params)


def test_labels_are_overruled_by_the_gates(policy):
    """Whoever passes has won, whatever the person said; where neither passes the pair counts nothing."""
    rows = steps.make_rows()
    checks = np.ones((steps.NUM_ROWS, steps.NUM_COMPLETIONS + 1, 1), np.float32)
    checks[0, 0] = 0.0  # chosen of pair (0, 1) fails
    checks[1] = 0.0
    found = of_rows.relabelled(GATE, rows, checks)
    np.testing.assert_array_equal(found.outcome[0], [0.0, 1.0])
    np.testing.assert_array_equal(found.pair_weight[1], 0.0)
    np.testing.assert_array_equal(found.outcome[2:], rows.outcome[2:])


def test_all_of_them_in_dpo(policy):
    rng = np.random.default_rng(0)
    checks = rng.integers(0, 2, (1, steps.NUM_ROWS, steps.NUM_COMPLETIONS + 1, len(ALL.checks)))
    state, metrics = dpo_step(policy, "soft", ALL, checks)
    own = {name: float(value) for name, value in metrics.items() if name.startswith("train/guard/")}
    assert len(own) == 20 and np.isfinite(list(own.values())).all()
    assert float(state.guard.reference[1]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guardrails": {"floor": {}}}, "guardrails.floor: compares people"),
        (
            {
                "guardrails": {
                    "checks": [{"name": "safe", "kind": "function", "function": "f.py:f", "gate": 1}]
                },
                "rollout": {"completions": 1, "max_new_tokens": 4},
            },
            "at least 2",
        ),
    ],
)
def test_configurations_in_which_a_rail_means_nothing_are_refused(changes, message):
    given = {
        "output_dir": "runs/x",
        "seed": 0,
        "data": {"path": "x.jsonl"},
        "model": {"name": "m"},
        "columns": ({"name": "a", "kind": "function", "function": "f.py:f"},),
        "rollout": {"completions": 4, "max_new_tokens": 4},
        "kl": {"coef": 0.1},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 3},
    }
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**(given | changes))
