"""Small batches for the tests of training steps."""

import numpy as np

from rewards.types import GroupPrior, UserPosterior
from rlhf.objectives.preference import PreferenceLossConfig
from rlhf.policy.batches import PairRows, microbatches
from rlhf.policy.conditioning import Population, RailConfig
from rlhf.policy.logprobs import all_logprobs
from rlhf.policy.packing import Sequences, pack
from rlhf.run.record import traced
from rlhf.train import dpo_step as dpo
from rlhf.train.optim import OptimizerConfig

NUM_ROWS, NUM_COMPLETIONS, K = 4, 3, 2
PROMPTS = [(1, 5 + r, 6) for r in range(NUM_ROWS)]
COMPLETIONS = [((8, 9, 10 + r, 2), (8, 2), (r + 3, 20, 21, 22, 2)) for r in range(NUM_ROWS)]


def make_optimizer(**changes) -> OptimizerConfig:
    values = dict(learning_rate=0.01, schedule="constant", weight_decay=0.1, beta2=0.99, eps=1e-6)
    return OptimizerConfig(**(values | changes))


def make_settings(
    kind: str, *, optimizer: dict | None = None, num_steps: int = 100, eta: float = 0.0, **loss
) -> dpo.DPOSettings:
    """Of a DPO step; `loss` are other keys of the loss than its kind."""
    return traced(
        dpo.DPOSettings(
            loss=PreferenceLossConfig(**(dict(kind=kind, dpo_beta=0.3) | loss)),
            rail=RailConfig(eta=eta),
            optimizer=make_optimizer(**(optimizer or {})),
            num_steps=num_steps,
        )
    )


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


def make_batch(policy, *, num_basis: int = K, accumulation: int = 1, seed: int = 0) -> dpo.DPOBatch:
    """`make_rows` with a reference a little off the policy, split into micro-batches."""
    rows, rng = make_rows(), np.random.default_rng(seed)
    valid = rows.item >= 0
    reference = all_logprobs(policy.graphdef, policy.params, rows.packed, None)
    reference = np.where(valid, reference + rng.normal(size=valid.shape), 0.0).astype(np.float32)
    basis = np.where(valid[:, :, None], rng.normal(size=(*valid.shape, num_basis)), 0.0).astype(np.float32)

    arrays = (rows, reference, basis, None)
    return dpo.DPOBatch(*microbatches(arrays, np.arange(NUM_ROWS), accumulation))


def make_population(seed: int = 0, *, spread: bool = True) -> Population:
    """Two people of opposite taste; without `spread` their coefficients are known exactly."""
    rng = np.random.default_rng(seed)
    taste = np.array([1.0, -0.5]) + 0.3 * rng.normal(size=2)
    precision = np.eye(K) * (4.0 if spread else 1e12)
    people = [UserPosterior((s * taste).astype(np.float32), precision.astype(np.float32), 5) for s in (1, -1)]
    prior = GroupPrior(np.array([0.2, -0.1], np.float32), np.array([[1.0, 0.3], [0.3, 0.5]], np.float32))
    return Population.from_posteriors(prior, people, extreme_sd=2.0)
