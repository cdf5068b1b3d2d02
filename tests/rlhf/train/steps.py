"""Small batches for the tests of training steps."""

import jax.numpy as jnp
import numpy as np

from rewards.types import GroupPrior, UserPosterior
from rlhf.policy.batches import PairRows, microbatches
from rlhf.policy.conditioning import Population, UserShares
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.train import dpo_step as dpo
from rlhf.train import optim

NUM_ROWS, NUM_COMPLETIONS, K = 4, 3, 2
PROMPTS = [(1, 5 + r, 6) for r in range(NUM_ROWS)]
COMPLETIONS = [((8, 9, 10 + r, 2), (8, 2), (r + 3, 20, 21, 22, 2)) for r in range(NUM_ROWS)]


def make_hyper(**changes) -> optim.Hyper:
    values = dict(
        learning_rate=0.01,
        warmup_steps=0,
        num_steps=100,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.99,
        eps=1e-6,
        max_grad_norm=1.0,
    )
    return optim.Hyper(**{name: jnp.float32(value) for name, value in (values | changes).items()})


def loss_hyper(**changes) -> dpo.LossHyper:
    values = dict(dpo_beta=0.3, label_smoothing=0.0, simpo_gamma=0.5, nll_coef=0.0, eta=0.0) | changes
    return dpo.LossHyper(**{name: jnp.float32(value) for name, value in values.items()})


def make_static(policy, kind: str, *, shares: UserShares | None = None, **changes) -> dpo.Static:
    fields = dict(length_normalise=False, with_nll=False, with_rail=False) | changes
    return dpo.Static(policy.graphdef, optim.Schedule("constant"), kind, shares=shares, **fields)


def make_rows() -> PairRows:
    """Three completions a row and a padded fourth; the pairs (0, 1) and (2, 1), the second a tie in row 1."""
    packed = pack([[Sequences(p, c)] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    packed = packed._replace(member=np.pad(packed.member, ((0, 0), (0, 1), (0, 0))))
    item = np.full((NUM_ROWS, NUM_COMPLETIONS + 1), -1, np.int32)
    item[:, :NUM_COMPLETIONS] = np.arange(NUM_ROWS * NUM_COMPLETIONS).reshape(NUM_ROWS, -1)
    pairs = np.tile(np.array([[[0, 1], [2, 1]]], np.int32), (NUM_ROWS, 1, 1))
    weight = np.tile(np.array([[2.0, 1.0]], np.float32), (NUM_ROWS, 1))
    outcome = np.ones((NUM_ROWS, 2), np.float32)
    outcome[1, 1] = 0.5
    return PairRows(packed, item, pairs, weight, outcome, np.array([0, 1, 0, 1], np.int32))


def make_batch(policy, *, num_basis: int = K, accumulation: int = 1, seed: int = 0) -> dpo.Batch:
    """`make_rows` with a reference a little off the policy, split into micro-batches."""
    rows, rng = make_rows(), np.random.default_rng(seed)
    valid = rows.item >= 0
    reference = all_logprobs(policy.graphdef, policy.params, rows.packed, None)
    reference = np.where(valid, reference + rng.normal(size=valid.shape), 0.0).astype(np.float32)
    basis = np.where(valid[:, :, None], rng.normal(size=(*valid.shape, num_basis)), 0.0).astype(np.float32)

    arrays = (rows, reference, basis, None)
    return dpo.Batch(*microbatches(arrays, np.arange(NUM_ROWS), accumulation))


def make_population(seed: int = 0, *, spread: bool = True) -> Population:
    """Two people of opposite taste; without `spread` their coefficients are known exactly."""
    rng = np.random.default_rng(seed)
    taste = np.array([1.0, -0.5]) + 0.3 * rng.normal(size=2)
    precision = np.eye(K) * (4.0 if spread else 1e12)
    people = [UserPosterior((s * taste).astype(np.float32), precision.astype(np.float32), 5) for s in (1, -1)]
    prior = GroupPrior(np.array([0.2, -0.1], np.float32), np.array([[1.0, 0.3], [0.3, 0.5]], np.float32))
    return Population.from_posteriors(prior, people, extreme_sd=2.0)
