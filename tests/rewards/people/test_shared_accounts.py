import jax
import numpy as np
import pytest
from scipy.special import expit

from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.people import shared_accounts

SIZE = 3
PRIOR = Belief.from_cov(np.full(SIZE, 0.5, np.float32), 2 * np.eye(SIZE, dtype=np.float32))


def account(rng, coefs, share, sittings=15, length=8, ties=0):
    """Answers of one or two people to random pairs; who sits there is drawn for every sitting."""
    sitting = np.repeat(np.arange(sittings), length)
    delta = np.float32(1.5 * rng.normal(size=(len(sitting), SIZE)))
    who = (rng.random(sittings) >= share).astype(int)[sitting]
    outcome = np.float32(rng.random(len(sitting)) < expit(np.sum(delta * coefs[who], axis=1)))
    outcome[:ties] = 0.5
    return delta, outcome, who, sitting


def test_two_people_are_told_apart():
    rng = np.random.default_rng(0)
    coefs = np.array([[0.5, 2.0, 0.0], [0.5, -2.0, 0.0]])
    delta, outcome, who, sitting = account(rng, coefs, 0.65, ties=4)
    found = shared_accounts.check(PRIOR, delta, outcome, key=jax.random.key(0), sitting=sitting)
    assert found.flagged and found.p_value == pytest.approx(1 / (1 + shared_accounts.SIMULATIONS))
    assert found.share == pytest.approx(np.mean(who == 0), abs=0.1) and found.gain_nats > 3
    assert found.coef[0, 1] > 1 and found.coef[1, 1] < -1  # the first gives more answers
    assert np.mean((found.first < 0.5) == who) > 0.9
    first, second = shared_accounts.two_posteriors(PRIOR, delta, outcome, found)
    assert first.mean[1] > 1 and second.mean[1] < -1
    assert first.num_answers + second.num_answers == pytest.approx(120, abs=1)
    alone = users.posterior(PRIOR, delta, outcome)
    assert abs(alone.mean[1]) < 1  # what one Gaussian makes of them


def test_single_people_are_left_alone():
    """40 people at a level of 5 %: more than 5 false alarms would happen once in 70 such tests (binomial)."""
    rng, alarms = np.random.default_rng(1), 0
    for person in range(40):
        coef = 0.5 + np.sqrt(2) * rng.normal(size=(1, SIZE))
        delta, outcome, _, sitting = account(rng, coef, 1.1, length=4)
        key = jax.random.key(person)
        alarms += shared_accounts.check(PRIOR, delta, outcome, key=key, sitting=sitting).flagged
    assert alarms <= 5


def test_sittings_end_with_a_break():
    times = ["2025-01-01T10:00:00+00:00", "2025-01-01T10:29:00+00:00", "2025-01-01T11:00:00+00:00"]
    assert shared_accounts.sittings([*times, times[0]]).tolist() == [0, 0, 1, 2]
    assert shared_accounts.sittings(times[:2]) is None
    assert shared_accounts.sittings(["once", *times]) is None


def test_few_answers_cannot_tell():
    delta = np.ones((shared_accounts.MIN_ANSWERS - 1, SIZE), np.float32)
    assert shared_accounts.check(PRIOR, delta, np.ones(len(delta)), key=jax.random.key(0)) is None
