"""Surrogate, value loss, KL estimators and controllers against rlax, TRL and closed forms."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from rlhf.objectives import surrogate as obj
from rlhf.objectives.kl_control import KLConfig, next_kl_coef

B, T = 5, 6


@pytest.fixture(autouse=True)
def no_silent_broadcasting():
    with jax.numpy_rank_promotion("raise"):
        yield


def batch(seed=0):
    rng = np.random.default_rng(seed)
    old = -rng.gamma(2.0, 1.0, (B, T)).astype(np.float32)
    new = (old + rng.normal(0, 0.4, (B, T))).astype(np.float32)
    ref = (old + rng.normal(0, 0.4, (B, T))).astype(np.float32)
    advantages = rng.normal(size=(B, T)).astype(np.float32)
    mask = np.arange(T) < rng.integers(1, T + 1, B)[:, None]
    return new, old, ref, advantages, mask


def test_surrogate_equals_rlax_in_value_and_gradient():
    rlax = pytest.importorskip("rlax", reason="rlax is not installed; it pins a nightly package")
    new, old, _, advantages, mask = batch()

    def ours(logprobs):
        loss, _ = obj.clipped_surrogate(logprobs, old, advantages, mask, 0.2, 0.2)
        return obj.aggregate(loss, mask, "token")

    def theirs(logprobs):
        ratio = jnp.exp(logprobs - old)[mask]
        return rlax.clipped_surrogate_pg_loss(ratio, jnp.asarray(advantages[mask]), 0.2)

    np.testing.assert_allclose(ours(new), theirs(jnp.asarray(new)), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(new), jax.grad(theirs)(jnp.asarray(new)), atol=1e-6)


def test_padding_of_any_size_is_harmless():
    new, old, _, advantages, mask = batch()
    far = np.where(mask, new, 1e4).astype(np.float32)

    def loss(logprobs):
        values, _ = obj.clipped_surrogate(logprobs, old, advantages, mask, 0.2, 0.2)
        return obj.aggregate(values, mask, "token")

    np.testing.assert_array_equal(loss(far), loss(new))
    gradient = np.asarray(jax.grad(loss)(far))
    assert np.isfinite(gradient).all() and not gradient[~mask].any()


def trl_loss(kind, new, old, ref, advantages, mask, beta, low, high):
    """GRPOTrainer._compute_loss on given log-probs; its settings on a plain object, no model."""
    tensor = {name: torch.tensor(value) for name, value in (("old", old), ("ref", ref))}
    logprobs = torch.tensor(new, requires_grad=True)
    trainer = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, torch.zeros(B, T), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        epsilon_low=low,
        epsilon_high=high,
        loss_type=kind,
        use_vllm=False,
        max_completion_length=T,
        current_gradient_accumulation_steps=1.0,
        _entropy_bonus_enabled=False,
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=types.SimpleNamespace(training=False),
        accelerator=types.SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, **k: x, gather_for_metrics=lambda x: x
        ),
        _metrics={"eval": __import__("collections").defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.ones(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.ones(B, T, dtype=torch.long),
        "completion_mask": torch.tensor(mask, dtype=torch.float32),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": tensor["old"],
        "ref_per_token_logps": tensor["ref"],
        "num_items_in_batch": torch.tensor(float(mask.sum())),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.numpy()


@pytest.mark.parametrize(
    "theirs,how,high", [("grpo", "sequence", 0.2), ("dapo", "token", 0.28), ("dr_grpo", "constant", 0.2)]
)
def test_loss_equals_trl_in_value_and_gradient(theirs, how, high):
    new, old, ref, advantages, mask = batch(1)
    beta = 0.04

    def ours(logprobs):
        surrogate, _ = obj.clipped_surrogate(logprobs, old, advantages, mask, 0.2, high)
        penalty = obj.kl_estimate(logprobs, ref, mask, "k3")
        return obj.aggregate(surrogate + beta * penalty, mask, how, T)

    value, gradient = trl_loss(theirs, new, old, ref, advantages, mask, beta, 0.2, high)
    np.testing.assert_allclose(ours(jnp.asarray(new)), value, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(new)), gradient, atol=1e-6)


def test_value_loss_by_hand():
    values, old, returns = (np.array([[[x]]], np.float32) for x in (2.0, 0.0, 3.0))
    assert obj.value_loss(values, old, returns, np.inf)[0, 0, 0] == 0.5
    assert obj.value_loss(values, old, returns, 0.5)[0, 0, 0] == 0.5 * 2.5**2  # the clipped one is worse
    assert obj.value_loss(values, old, returns, np.inf, 0.5)[0, 0, 0] == 0.5 * 0.25 + 0.5 * 0.5
    gradient = jax.grad(lambda v: obj.value_loss(v, old, returns, np.inf).sum())(jnp.asarray(values))
    np.testing.assert_allclose(gradient, values - returns)


def test_kl_estimators_are_right_on_average():
    """Over samples of π: k1 and k3 have mean KL(π‖ref), by enumeration of four tokens."""
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    logp, logq = (np.log(x)[None].astype(np.float32) for x in (p, q))
    mask = np.ones((1, 4), bool)
    exact = np.sum(p * np.log(p / q))
    for kind in ("k1", "k3"):
        estimate = np.asarray(obj.kl_estimate(logp, logq, mask, kind))[0]
        np.testing.assert_allclose(np.sum(p * estimate), exact, rtol=1e-5)
    assert (np.asarray(obj.kl_estimate(logp, logq, mask, "k3")) >= 0).all()
    k2 = obj.kl_estimate(logp, logq, mask, "k2")
    np.testing.assert_allclose(k2, 0.5 * (logp - logq) ** 2, rtol=1e-6)
    with pytest.raises(ValueError, match="k9"):
        obj.kl_estimate(logp, logq, mask, "k9")


def test_explained_variance():
    rng = np.random.default_rng(0)
    returns = rng.normal(size=(B, T, 2)).astype(np.float32)
    mask = np.ones((B, T), bool)
    np.testing.assert_allclose(obj.explained_variance(returns, returns, mask), 1.0)
    np.testing.assert_allclose(obj.explained_variance(0 * returns, returns, mask), 0.0, atol=1e-6)
    assert not np.any(obj.explained_variance(returns, 0 * returns, mask))
    # Against NumPy, far from 0 and with tokens that do not count.
    returns, mask = returns + 5.0, rng.random((B, T)) < 0.6
    values = (returns - 3.0 + rng.normal(size=returns.shape)).astype(np.float32)
    expected = 1 - np.var((returns - values)[mask], axis=0) / np.var(returns[mask], axis=0)
    np.testing.assert_allclose(obj.explained_variance(values, returns, mask), expected, atol=1e-4)


def test_kl_controllers_push_towards_the_target():
    beta = jnp.float32(0.1)

    def following(controller, kl_nats):
        kl = KLConfig(coef=0.1, controller=controller, target_nats=1.0, horizon=1000.0)
        return next_kl_coef(kl, beta, jnp.float32(kl_nats), completions=64)

    assert following("fixed", 9.0) == beta
    for kind in ("adaptive", "target"):
        assert following(kind, 2.0) > beta
        assert following(kind, 0.5) < beta
        assert following(kind, -5.0) > 0
    # Ziegler et al.: error clipped at 0.2, times n/horizon.
    got = following("adaptive", 9.0)
    np.testing.assert_allclose(got, 0.1 * (1 + 0.2 * 64 / 1000), rtol=1e-6)


@pytest.mark.parametrize("controller", ["adaptive", "target"])
@pytest.mark.parametrize("horizon", [0.5, 1.0, 4.0, 10.0, 64.0, 1e4])
@pytest.mark.parametrize("kl_nats", [0.0, -3.0, 1e-6, 6.0, 1e30])
def test_beta_stays_a_price(controller, horizon, kl_nats):
    """Positive and finite for any horizon and any KL, however long the run; its direction is that of the error."""
    kl = KLConfig(coef=0.1, controller=controller, horizon=horizon, target_nats=6.0)
    beta = jnp.float32(0.1)
    for _ in range(400):
        after = next_kl_coef(kl, beta, jnp.float32(kl_nats), completions=64)
        assert 1e-6 * 0.99 <= float(after) <= 1e6 * 1.01
        assert (float(after) - float(beta)) * (kl_nats - 6.0) >= 0
        beta = after
