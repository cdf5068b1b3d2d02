import numpy as np
import pytest

from rewards.basis.behaviour import difference
from rewards.errors import UserError

DELTA = np.array([0.8, -0.3, 0.0])


def answers(rng, prompts, each=12, noise=0.5):
    """φ with a shift of every prompt, which must not count, and a δ of every prompt around DELTA."""
    prompt = np.repeat(np.arange(prompts), each)
    # The behaviour is commoner on prompts whose φ is high anyway.
    shift = 5 * rng.normal(size=(prompts, 3))
    behaves = rng.random(len(prompt)) < 1 / (1 + np.exp(-shift[prompt, 0] / 3))
    own = DELTA + noise * rng.normal(size=(prompts, 3))
    phi = shift[prompt] + behaves[:, None] * own[prompt] + rng.normal(size=(len(prompt), 3))
    return phi, behaves, prompt


def test_intervals_hold_what_they_promise_and_prompts_do_not_count():
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        found = difference(*answers(rng, 20), level=0.9)
        held.append((found.low <= DELTA) & (found.high >= DELTA))
    assert 0.86 <= np.mean(held) <= 0.94
    phi, behaves, prompt = answers(rng, 400)
    found = difference(phi, behaves, prompt)
    np.testing.assert_allclose(found.mean, DELTA, atol=0.15)
    assert (
        abs(phi[behaves].mean(axis=0)[0] - phi[~behaves].mean(axis=0)[0] - DELTA[0]) > 2
    )  # without prompts: wrong


def test_a_behaviour_that_is_never_compared_is_refused():
    phi, prompt = np.zeros((6, 2)), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(UserError, match="1 prompts have answers with it and without"):
        difference(phi, np.array([1, 0, 1, 1, 0, 0], bool), prompt)
