"""A reward run over a tiny model's hidden states, made without a fit."""

import numpy as np

from rewards.basis import gauge
from rewards.basis.belief import Belief
from rewards.basis.store import load_reward_run, save_reward_run
from rewards.people.population import save_people
from rewards.types import Gauge, RewardBasis
from rlhf.phi import encoder

PEOPLE = 6


def make_run(base, directory, *, layer=-1, pool="mean", quadratic=None, num_basis=3):
    """A stored run with a random head and an arbitrary gauge."""
    rng, width = np.random.default_rng(3), base.config.width
    rotation = np.linalg.qr(rng.normal(size=(num_basis, num_basis)))[0]
    record = Gauge(
        gauge.CENTRING,
        rng.normal(size=num_basis).astype(np.float32),
        (np.eye(num_basis) + 0.3 * rng.normal(size=(num_basis, num_basis))).astype(np.float32),
        rotation.astype(np.float32),
        np.array([1, -1, 1], np.float32)[:num_basis],
        1.7,
        tuple(f"axis {k}" for k in range(num_basis)),
        "",
    )
    settings = encoder.encoder_settings("lm", str(base.name), layer, pool, base.fingerprint)
    head = rng.normal(size=(width, num_basis)).astype(np.float32)
    basis = RewardBasis(head, record, settings, quadratic)
    prior = Belief.from_cov(np.ones(num_basis, np.float32), np.eye(num_basis, dtype=np.float32))
    identity = save_reward_run(directory, basis, prior)
    mean = prior.mean + rng.normal(size=(PEOPLE, num_basis))
    precision = np.tile(4.0 * np.eye(num_basis), (PEOPLE, 1, 1))
    save_people(directory, identity, [f"p{n}" for n in range(PEOPLE)], mean, precision, [5] * PEOPLE)
    return load_reward_run(directory)
