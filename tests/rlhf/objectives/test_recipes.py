"""GRPO, Dr.GRPO, DAPO, GSPO and CISPO as keys: loss and gradient against TRL's formulas in torch, and a slow loop.

The formulas are those of TRL 1.16, `GRPOTrainer._compute_loss`, with beta 0; advantages of `scale_rewards` "group" or "none".
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rlhf.objectives import advantages as adv
from rlhf.objectives import surrogate as obj
from rlhf.train.rl.estimate import unfinished

GROUP, SLOTS = 4, 6
RECIPES = {
    "grpo": ({"kind": "grpo", "aggregation": "sequence"}, "grpo", "token", "group"),
    "dr_grpo": ({"kind": "centred", "scaling": "none", "aggregation": "constant"}, "dr_grpo", "token", "none"),
    "dapo": ({"kind": "grpo", "aggregation": "token", "clip_high": 0.28}, "dapo", "token", "group"),
    "gspo": (
        {"kind": "grpo", "surrogate": "sequence", "aggregation": "sequence", "clip_low": 0.05, "clip_high": 0.08},
        "grpo",
        "sequence",
        "group",
    ),
    "cispo": (
        {"kind": "grpo", "surrogate": "weighted", "aggregation": "token", "clip_high": 0.3},
        "cispo",
        "token",
        "group",
    ),
}  # fmt: skip


def world(seed=0):
    rng = np.random.default_rng(seed)
    rows = 2 * GROUP
    mask = np.arange(SLOTS) < rng.integers(1, SLOTS + 1, rows)[:, None]
    logprobs = np.where(mask, -rng.exponential(1.0, (rows, SLOTS)), 0.0).astype(np.float32)
    old = np.where(mask, logprobs + rng.normal(0, 0.35, (rows, SLOTS)), 0.0).astype(np.float32)
    return logprobs, old, mask, rng.normal(0, 1, rows).astype(np.float32)


def ours(algorithm, logprobs, old, mask, rewards):
    channels, weights = jnp.asarray(rewards)[:, None], jnp.ones((len(rewards), 1))
    advantage = adv.ESTIMATORS[algorithm.kind].advantage(channels, weights, GROUP)
    advantage = jnp.where(mask, advantage[:, None], 0.0)
    per_token, _ = obj.SURROGATES[algorithm.surrogate](
        logprobs, old, advantage, mask, algorithm.clip_low, algorithm.clip_high
    )
    return obj.aggregate(per_token, mask, algorithm.aggregation, SLOTS)


def trl(algorithm, loss_type, level, scale, logprobs, old, mask, rewards):
    rewards = torch.tensor(rewards).view(-1, GROUP)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 1e-4)
    advantages, mask = advantages.view(-1, 1), torch.tensor(mask).float()
    log_ratio = (logprobs - torch.tensor(old)) * mask
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    coef_1 = torch.exp(log_ratio)
    if loss_type == "cispo":
        weight = torch.clamp(coef_1, max=1 + algorithm.clip_high).detach()
        per_token = -weight * advantages * logprobs
    else:
        coef_2 = torch.clamp(coef_1, 1 - algorithm.clip_low, 1 + algorithm.clip_high)
        per_token = -torch.min(coef_1 * advantages, coef_2 * advantages)
    if loss_type == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (mask.shape[0] * mask.shape[1])
    return (per_token * mask).sum() / mask.sum().clamp(min=1.0)


@pytest.mark.parametrize("name", RECIPES)
def test_loss_and_gradient_are_trls(name):
    keys, loss_type, level, scale = RECIPES[name]
    algorithm = adv.GRPOAlgorithmConfig(**keys)
    logprobs, old, mask, rewards = world()
    value, gradient = jax.value_and_grad(lambda own: ours(algorithm, own, old, mask, rewards))(
        jnp.asarray(logprobs)
    )
    leaf = torch.tensor(logprobs, requires_grad=True)
    expected = trl(algorithm, loss_type, level, scale, leaf, old, mask, rewards)
    expected.backward()
    assert float(value) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-7)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("kind", obj.SURROGATES)
def test_surrogates_equal_a_slow_loop(kind):
    logprobs, old, mask, rewards = world(3)
    advantages = np.repeat(rewards[:, None], SLOTS, axis=1)
    low, high = 0.1, 0.2
    found, seen = obj.SURROGATES[kind](logprobs, old, advantages, mask, low, high)
    for row in range(len(rewards)):
        tokens = range(int(mask[row].sum()))
        ratios = [math.exp(float(logprobs[row, t]) - float(old[row, t])) for t in tokens]
        for t in tokens:
            ratio = math.prod(ratios) ** (1 / len(ratios)) if kind == "sequence" else ratios[t]
            gain = float(rewards[row])
            limited = min(max(ratio, 1 - low), 1 + high) * gain
            value = -min(ratio * gain, limited)
            if kind == "weighted":
                value = -min(ratio, 1 + high) * gain * float(logprobs[row, t])
            assert float(found[row, t]) == pytest.approx(value, rel=1e-4, abs=1e-6)
            assert float(seen["ratio"][row, t]) == pytest.approx(ratio, rel=1e-4)


def test_no_gradient_goes_through_a_weight_and_a_clipped_token_keeps_its_own():
    """CISPO: d/d logπ = −sg(min(r, 1 + ε)) A at every token, also beyond the clip, where the clipped ratio has none."""
    logprobs, old, mask, _ = world(4)
    ones = jnp.ones_like(logprobs)
    slope = {
        kind: jax.grad(lambda own, kind=kind: jnp.sum(obj.SURROGATES[kind](own, old, ones, mask, 0.2, 0.2)[0]))(
            jnp.asarray(logprobs)
        )
        for kind in ("token", "weighted")
    }  # fmt: skip
    ratio = np.exp(logprobs - old)
    beyond = mask & (ratio > 1.2)
    assert beyond.any() and (slope["token"][beyond] == 0).all()
    np.testing.assert_allclose(slope["weighted"], np.where(mask, -np.minimum(ratio, 1.2), 0.0), rtol=1e-5)


def test_overlong_punishment_is_that_of_dapo():
    length = np.array([1, 4, 5, 6, 6])
    rollout = SimpleNamespace(
        mask=jnp.asarray(np.arange(SLOTS) < length[:, None]), ended=jnp.array([1, 1, 1, 0, 1], bool)
    )

    def dapo(tokens, longest, cache):
        if tokens <= longest - cache:
            return 0.0
        return (longest - cache - tokens) / cache if tokens <= longest else -1.0

    for cache in (1, 2, 4):
        expected = [-dapo(int(tokens), SLOTS, cache) for tokens in length]
        np.testing.assert_allclose(unfinished(rollout, cache), expected, atol=1e-7)
    assert unfinished(rollout, 0).tolist() == [0, 0, 0, 1, 0]


def test_what_a_weighted_surrogate_does_not_read_is_said():
    found = [key for one in adv.GRPOAlgorithmConfig(surrogate="weighted").unread() for key in one.keys]
    assert "clip_low" in found
