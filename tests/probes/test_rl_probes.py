"""Policy gradients reach the known optimum of small tasks; which estimator keeps the strength of a taste.

Thresholds are about three times what five seeds reach (`docs/results/rl_probes.md`).
"""

import numpy as np
import pytest

from scripts.experiments import rl_tasks

ITERATIONS = 150


def test_a_constant_reward_moves_nothing():
    """Without a critic every advantage is exactly zero."""
    found = rl_tasks.train(rl_tasks.PROBES["constant reward"], "centred", 0, 20)
    assert abs(found["kl_to_reference"]) < 1e-9
    assert found["metrics"]["train/zero_variance_share"] == 1.0


@pytest.mark.parametrize("name", ["one token", "by prompt", "by person"])
def test_the_optimum_is_reached_for_people_never_seen_too(name):
    found = rl_tasks.train(rl_tasks.PROBES[name], "centred", 0, ITERATIONS, every=ITERATIONS)
    (_, before), (_, after) = found["curve"]
    assert before > 0.4 and after < 0.2, found


def test_ppo_with_a_critic_of_channels_reaches_it_as_well():
    found = rl_tasks.train(rl_tasks.PROBES["by person"], "ppo", 0, ITERATIONS)
    assert found["kl_to_optimum"] < 0.2, found


@pytest.mark.parametrize(("algorithm", "kept"), [("centred", True), ("grpo", False)])
def test_dividing_by_the_groups_deviation_erases_the_strength_of_a_taste(algorithm, kept):
    """‖w‖ × 1/4, 1, 4 with the KL in the loss: three policies under centring, one under GRPO's scaling."""
    moved = [
        rl_tasks.train(rl_tasks.intensity(f), algorithm, 0, ITERATIONS, place="loss")["kl_to_reference"]
        for f in rl_tasks.INTENSITIES
    ]
    if kept:
        assert moved[0] < 0.005 < moved[1] < 0.1 < 0.5 < moved[2], moved
    else:
        assert np.ptp(moved) < 0.3 * np.mean(moved) and np.mean(moved) > 0.1, moved
