"""The DPO family against TRL's own loss code on the same log-probs; the personal losses against their optima.

TRL is driven without a model: its loss methods are called on an object that holds the settings they read,
with log-probs as the model's output. What TRL 1.16 offers: sigmoid and ipo in DPOTrainer; SimPO and the
smoothed sigmoid (cDPO, given log-ratios in place of log-probs) in CPOTrainer.cpo_loss.
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

from rlhf.objectives import preference as losses
from rlhf.policy.batches import PairRows
from rlhf.policy.conditioning import RailConfig
from rlhf.policy.packing import Sequences, pack
from rlhf.train.dpo_step import pair_losses

BETA, EPS, GAMMA = 0.3, 0.15, 0.7
LENGTHS = np.array([[4, 2], [1, 5], [3, 3], [6, 1]])  # completion tokens: chosen, rejected


@pytest.fixture(autouse=True)
def no_silent_broadcasting():
    with jax.numpy_rank_promotion("raise"):
        yield


def log_probs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Per-pair log-probs [N, 2] of policy and reference, far apart and close, near 0 and far below it."""
    rng = np.random.default_rng(seed)
    return tuple((-rng.gamma(2.0, 3.0, LENGTHS.shape)).astype(np.float32) for _ in range(2))


def trl_dpo(kind: str, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """DPOTrainer._compute_loss for one pair, whose summed log-probs are policy[2] and reference[2], each."""
    total = 0.0
    for index, lengths in enumerate(LENGTHS):
        width = int(lengths.max()) + 1
        mask = torch.tensor([[0] + [1] * n + [0] * (width - 1 - n) for n in lengths])
        per_token = (policy[index] / torch.tensor(lengths))[:, None] * mask[:, 1:]
        zeros = torch.zeros_like(per_token)
        outputs = types.SimpleNamespace(
            log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
        )
        accelerator = types.SimpleNamespace(
            device="cpu", gather=lambda x: torch.as_tensor(x), gather_for_metrics=lambda x: torch.as_tensor(x)
        )
        trainer = types.SimpleNamespace(
            model=types.SimpleNamespace(training=True),
            accelerator=accelerator,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[kind],
            loss_weights=[1.0],
            beta=BETA,
            label_smoothing=0.0,
            use_weighting=False,
            _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": reference[index, :1],
            "ref_rejected_logps": reference[index, 1:],
        }
        total = total + DPOTrainer._compute_loss(trainer, lambda outputs=outputs, **_: outputs, inputs, False)
    return total


def trl_cpo(kind: str, chosen: torch.Tensor, rejected: torch.Tensor, smoothing: float) -> torch.Tensor:
    trainer = types.SimpleNamespace(
        alpha=0.0,
        accelerator=types.SimpleNamespace(device="cpu"),
        loss_type=kind,
        beta=BETA,
        simpo_gamma=GAMMA,
        label_smoothing=smoothing,
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].sum()


def trl_loss(kind: str, policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if kind == "dpo":
        return trl_dpo("sigmoid", policy, reference)
    if kind == "ipo":
        return trl_dpo("ipo", policy, reference)
    if kind == "cdpo":
        ratio = policy - reference
        return trl_cpo("sigmoid", ratio[:, 0], ratio[:, 1], EPS)
    means = policy / torch.tensor(LENGTHS)
    return trl_cpo("simpo", means[:, 0], means[:, 1], 0.0)


def our_loss(kind: str, policy: jax.Array, reference: jax.Array) -> jax.Array:
    """What the training step computes from summed log-probs, through `pair_losses`."""
    scale = 1.0 / jnp.asarray(LENGTHS, jnp.float32) if kind in ("ipo", "simpo") else jnp.ones(LENGTHS.shape)
    config = losses.PreferenceLossConfig(kind=kind, dpo_beta=BETA, label_smoothing=EPS, simpo_gamma=GAMMA)
    rows = make_rows(np.ones((len(LENGTHS), 1)))
    loss, _ = pair_losses(config, RailConfig(), rows, policy * scale, reference * scale, None)
    return jnp.sum(loss)


def make_rows(outcome: np.ndarray) -> PairRows:
    num_rows = len(outcome)
    packed = pack([[Sequences((1,), ((2,), (3,)))]] * num_rows)
    pairs = np.tile(np.array([[[0, 1]]], np.int32), (num_rows, 1, 1))
    weight = np.ones((num_rows, 1), np.float32)
    item = np.zeros((num_rows, 2), np.int32)
    return PairRows(packed, item, pairs, weight, outcome.astype(np.float32), np.full(num_rows, -1, np.int32))


@pytest.mark.parametrize("kind", ["dpo", "ipo", "cdpo", "simpo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_equal_trl(kind, seed):
    policy, reference = log_probs(seed)
    leaf = torch.tensor(policy, requires_grad=True)
    wanted = trl_loss(kind, leaf, torch.tensor(reference))
    wanted.backward()
    value, grad = jax.value_and_grad(our_loss, argnums=1)(kind, jnp.asarray(policy), jnp.asarray(reference))
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(grad).max() > 1e-2


def test_ipo_without_length_normalisation_is_the_papers():
    """Azar 2023, Eq. 17, in torch: TRL only has the per-token form."""
    policy, reference = log_probs(0)
    leaf = torch.tensor(policy, requires_grad=True)
    ratio = leaf - torch.tensor(reference)
    wanted = ((ratio[:, 0] - ratio[:, 1] - 1 / (2 * BETA)) ** 2).sum()
    wanted.backward()

    def ours(policy):
        ratio = policy - reference
        return jnp.sum(losses.ipo(ratio[:, 0] - ratio[:, 1], BETA))

    value, grad = jax.value_and_grad(ours)(jnp.asarray(policy))
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5)


def test_soft_label_and_regression_are_least_at_the_target():
    target = jnp.linspace(-3.0, 3.0, 7)
    for loss in (losses.soft_label, losses.regression):
        slope = jax.grad(lambda h, loss=loss: jnp.sum(loss(h, target)))
        np.testing.assert_allclose(slope(target), 0.0, atol=1e-6)
        assert (slope(target + 0.3) > 0).all() and (slope(target - 0.3) < 0).all()


def test_soft_label_is_the_cross_entropy_of_the_persons_answer():
    h, target = np.random.default_rng(0).normal(size=(2, 50)) * 3
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(h), torch.sigmoid(torch.tensor(target)), reduction="none"
    )
    ours = losses.soft_label(jnp.asarray(h, jnp.float32), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    h = jnp.array([-2.0, -0.1, 0.4, 1.5])
    target = jnp.array([1.0, 0.0, -1.0, 3.0])
    for loss in (
        lambda h: losses.soft_label(h, target),
        lambda h: losses.regression(h, target),
        lambda h: losses.dpo(h, EPS),
        lambda h: losses.ipo(h, BETA),
        lambda h: losses.simpo(h, BETA, GAMMA),
    ):
        on_device = lambda h, loss=loss: loss(jnp.asarray(h))  # noqa: E731 (check_grads passes NumPy arrays)
        check_grads(on_device, (h,), order=2, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)


def test_extreme_margins_stay_finite():
    h = jnp.array([-1e4, 1e4], jnp.float32)
    for loss in (losses.dpo, lambda h: losses.soft_label(h, -h)):
        value, grad = jax.vmap(jax.value_and_grad(loss))(h)
        assert np.isfinite(value).all() and np.isfinite(grad).all()


@pytest.mark.parametrize("kind", ["dpo", "ipo", "cdpo", "simpo"])
def test_a_tie_is_half_of_either_answer(kind):
    config = losses.PreferenceLossConfig(kind=kind, dpo_beta=BETA, label_smoothing=EPS, simpo_gamma=GAMMA)
    policy, reference = (jnp.asarray(values) for values in log_probs(2))

    def loss(outcome, flip=False):
        a, b = (policy[:, ::-1], reference[:, ::-1]) if flip else (policy, reference)
        rows = make_rows(np.full((len(LENGTHS), 1), outcome))
        return pair_losses(config, RailConfig(), rows, a, b, None)[0]

    np.testing.assert_allclose(loss(0.5), 0.5 * (loss(1.0) + loss(1.0, flip=True)), rtol=1e-5)
    np.testing.assert_allclose(loss(0.5), loss(0.5, flip=True), rtol=1e-5)  # nobody was preferred


def test_pair_weights_average_within_a_row_and_padding_counts_nothing():
    rows = make_rows(np.ones((1, 1)))
    pairs = np.array([[[0, 1], [1, 2], [0, 0]]], np.int32)
    rows = rows._replace(
        pairs=pairs, pair_weight=np.array([[3.0, 1.0, 0.0]], np.float32), outcome=np.ones((1, 3), np.float32)
    )
    config = losses.PreferenceLossConfig(kind="dpo", dpo_beta=BETA)
    values = jnp.array([[-1.0, -4.0, -2.0]])
    loss, diagnostics = pair_losses(config, RailConfig(), rows, values, jnp.zeros((1, 3)), None)
    wanted = (3 * np.log1p(np.exp(-BETA * 3.0)) + np.log1p(np.exp(BETA * 2.0))) / 4
    np.testing.assert_allclose(loss, [wanted], rtol=1e-5)
    np.testing.assert_allclose(diagnostics["train/accuracy"], [0.75])
    np.testing.assert_allclose(diagnostics["train/margin"], [BETA * (3 * 3.0 - 2.0) / 4], rtol=1e-5)
