"""A small task with a known optimum: a policy trained on two opposite people is π_ref·exp(w·φ/β) for others.

Two prompts with six answers each, two basis outputs; training sees the two people, draws from the prior and
its mean, and is judged on people it never saw.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rewards.basis.belief import Belief
from rlhf.models.adapters import AdapterSpec
from rlhf.policy.batches import PairRows, microbatches
from rlhf.policy.conditioning import Gate, Population, UserShares, UsersMixConfig
from rlhf.policy.logprobs import all_logprobs, init_adapters
from rlhf.policy.packing import Sequences, pack
from rlhf.report import figures as evaluate
from rlhf.train import dpo_step as dpo
from rlhf.train import optim
from tests.rlhf import tiny
from tests.rlhf.train import steps

BETA, STEPS, BATCH = 0.5, 400, 8
UNSEEN = np.array([[0.6, -0.4], [-0.5, 0.9], [1.3, 0.2], [-0.9, -0.9]], np.float32)
ANSWERS = ((8, 9, 2), (8, 10, 2), (8, 2), (11, 12, 2), (11, 2), (13, 2))
SPEC = AdapterSpec(lora_rank=4, lora_alpha=4.0, num_basis=2, basis_rank=4)


def make_problem():
    """Policy with fresh adapters, rows of all answers, φ, and the population of two opposite people."""
    policy = tiny.make_policy(tiny.make_base(tiny.make_config()), SPEC)
    packed = pack([[Sequences((1, 5 + prompt, 6), ANSWERS)] for prompt in range(2)])
    pairs = np.array(list(itertools.combinations(range(6), 2)), np.int32)
    rows = PairRows(
        packed,
        np.arange(12, dtype=np.int32).reshape(2, 6),
        np.tile(pairs, (2, 1, 1)),
        np.ones((2, 15), np.float32),
        np.ones((2, 15), np.float32),
        np.full(2, -1, np.int32),
    )
    phi = np.random.default_rng(0).normal(size=(2, 6, 2)).astype(np.float32)
    phi -= phi.mean(axis=1, keepdims=True)
    prior = Belief.from_cov(np.array([0.3, 0.0], np.float32), np.diag([0.8, 0.5]).astype(np.float32))
    people = [
        Belief.from_precision(np.array([s, -s], np.float32), (25 * np.eye(2)).astype(np.float32), 9)
        for s in (1.0, -1.0)
    ]
    return policy, rows, phi, Population.from_posteriors(prior, people, extreme_sd=1.5)


def train(kind: str, *, eta: float = 0.0, nll_coef: float = 0.0):
    policy, rows, phi, population = make_problem()
    lora, conditioner = init_adapters(policy.graphdef, policy.params, jax.random.key(0))
    params = policy.params._replace(lora=lora, conditioner=conditioner)
    reference = all_logprobs(policy.graphdef, params, rows.packed, None)
    mix = UsersMixConfig(posterior=0.4, prior=0.3, extremes=0.1, generic=0.2)
    program = dpo.DPOProgram(policy.graphdef, UserShares.of(mix), nll_coef > 0, eta > 0)
    optimizer = {"learning_rate": 0.01, "schedule": "cosine", "weight_decay": 0.0}
    settings = steps.make_settings(
        kind, optimizer=optimizer, num_steps=STEPS, eta=eta, dpo_beta=BETA, nll_coef=nll_coef
    )
    trained = {"lora": lora, "conditioner": conditioner}
    state = optim.init_state(trained, settings.optimizer, jax.random.key(1))
    batch = dpo.DPOBatch(*microbatches((rows, reference, phi, None), np.resize(np.arange(2), BATCH), 1))
    frozen = jax.tree.map(jnp.array, params)  # the state's own buffers are donated
    for _ in range(STEPS):
        state, metrics = dpo.step(state, batch, frozen, population, settings, program=program)
    params = params._replace(**state.params)

    def logprobs(coef: np.ndarray, prompt: int) -> np.ndarray:
        """[U, 6] of one prompt's answers."""
        z = np.asarray(Gate(population.conditioning, BETA, eta)(coef))
        packed = rows.packed.take(np.full(len(coef), prompt))
        return all_logprobs(policy.graphdef, params, packed, None, z=z)

    return logprobs, reference, phi, population.conditioning.mean, metrics


@pytest.mark.parametrize("kind, nll_coef", [("soft", 0.1), ("regression", 0.0)])
def test_unseen_people_get_the_tilted_reference(kind, nll_coef):
    logprobs, reference, phi, mean, _ = train(kind, nll_coef=nll_coef)
    people = np.concatenate([UNSEEN, mean[None]])
    for prompt in range(2):
        best = evaluate.optimum(reference[prompt], people @ phi[prompt].T, BETA)
        reached = evaluate.kl(evaluate.normalise(logprobs(people, prompt)), best)
        untrained = evaluate.kl(evaluate.normalise(reference[prompt])[None], best)
        assert reached.max() < 0.1 and reached.mean() < 0.08 * untrained.mean(), (reached, untrained)


def test_the_rail_pulls_everyone_to_the_aggregate():
    """η = β: the policy of w is the optimum of the midpoint between w and μ."""
    logprobs, reference, phi, mean, _ = train("soft", eta=BETA)
    for prompt in range(2):
        halfway = evaluate.optimum(reference[prompt], (0.5 * (UNSEEN + mean)) @ phi[prompt].T, BETA)
        alone = evaluate.optimum(reference[prompt], UNSEEN @ phi[prompt].T, BETA)
        policy = evaluate.normalise(logprobs(UNSEEN, prompt))
        assert evaluate.kl(policy, halfway).max() < 0.05
        assert evaluate.kl(policy, alone).mean() > 0.1
