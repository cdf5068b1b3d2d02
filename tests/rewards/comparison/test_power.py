"""What so many people could have shown: planted differences are found as often as is said, and not below."""

import jax
import numpy as np
import pytest

from rewards.comparison.measures import FEW, bootstrap, quantile
from rewards.comparison.power import POWER, RELEVANT, Power, cannot_show, power

CHOICES = 3


def gains(people, difference, seed, noise, choices=CHOICES):
    """Right by δ more often in so many choices each, and noise of either sign."""
    rng = np.random.default_rng(seed)
    planted = (rng.random((people, choices)) < difference).mean(axis=1)
    return planted + rng.normal(0, noise, people)


def won(people, difference, noise, worlds=120, choices=CHOICES):
    return np.mean(
        [
            bootstrap(gains(people, difference, seed, noise, choices), jax.random.key(seed), draws=400).low
            > 0
            for seed in range(worlds)
        ]
    )


@pytest.mark.parametrize(("people", "noise"), [(13, 0.15), (16, 0.25), (40, 0.3)])
def test_the_difference_that_is_named_is_found_in_four_of_five_worlds(people, noise):
    half = quantile(people) * noise / np.sqrt(people)
    found = power(-half, half, people, choices=CHOICES)
    assert 0.02 < found.detectable < 0.6
    assert won(people, found.detectable, noise) == pytest.approx(POWER, abs=0.1)
    assert won(people, found.detectable / 2, noise) < 0.65


def test_planted_differences_of_20_points_are_found_with_few_people():
    choices = 6  # small sets are tested on half of what people chose
    for people in (13, 16):
        assert won(people, 0.2, 0.1, choices=choices) > 0.85
        half = quantile(people) * 0.1 / np.sqrt(people)
        assert power(-half, half, people, choices=choices).shows(0.2)


def test_more_people_and_narrower_intervals_show_more():
    found = [
        power(-0.2, 0.2, 16, choices=3),
        power(-0.1, 0.1, 16, choices=3),
        power(-0.05, 0.05, 64, choices=3),
    ]
    assert found[0].detectable > found[1].detectable > found[2].detectable
    assert power(-0.02, 0.02, 500, choices=3).detectable == pytest.approx(2.8 * 0.02 / 1.96, rel=1e-3)
    assert power(-1, 1, 8, choices=3) == Power(8, None) and not power(-1, 1, 8, choices=3).shows(1.0)
    # Without a single difference seen, three people and three choices each still show little.
    assert power(0.0, 0.0, 3, choices=3).detectable > 0.4 > RELEVANT


def test_of_rewards_in_nats_the_scale_does_not_matter():
    half = quantile(12) / 1.96 / 10
    one, ten = power(-half, half, 12), power(-10 * half, 10 * half, 12)
    assert ten.detectable == pytest.approx(10 * one.detectable)
    assert one.detectable == pytest.approx((quantile(12) + 0.87) * half / quantile(12), rel=0.08)


def test_in_words():
    assert cannot_show(Power(16, 0.207)) == "16 people cannot show a difference below 21 points"
    assert cannot_show(Power(1, None)) == "1 person cannot show a difference of any size"
    assert cannot_show(Power(12, 0.865), "nats") == "12 people cannot show a difference below 0.86 nats"


@pytest.mark.parametrize("people", [4, 13, 16, 29, 60])
def test_intervals_hold_the_truth_as_often_as_they_say(people):
    """Accuracies on six choices each, of people who differ; a percentile interval of 13 people would hold it in 91"
    " of a hundred."""
    rng = np.random.default_rng(people)
    tastes = rng.beta(4, 3, (1500, people))
    shares = rng.binomial(6, tastes) / 6
    found = [bootstrap(row, jax.random.key(0), draws=300, within=(0.0, 1.0)) for row in shares]
    held = np.mean([one.low <= 4 / 7 <= one.high for one in found])
    assert 0.935 <= held <= 0.98


def test_of_few_people_no_share_lies_outside_and_nothing_is_made_of_one():
    found = bootstrap(np.array([1.0, 1.0, 0.5]), jax.random.key(0), within=(0.0, 1.0))
    assert found.high == 1.0 and 0.0 <= found.low < 0.5
    alone = bootstrap(np.array([0.5]), jax.random.key(0))
    assert (alone.low, alone.high) == (0.5, 0.5) and 2.0 < quantile(FEW - 1) < 2.1 > quantile(FEW)
