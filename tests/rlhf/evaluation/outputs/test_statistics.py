"""Intervals, power and length control on numbers alone."""

import numpy as np
import pytest

from rlhf.evaluation.outputs import statistics

# standard deviations of people, prompts and the rest, in points of a win rate
WORLDS = {
    "noise": (0.0, 0.0, 0.5),
    "people": (0.05, 0.0, 0.4),
    "prompts": (0.0, 0.08, 0.4),
    "both": (0.04, 0.06, 0.4),
}


def draws(world, people, prompts, repetitions, mean=0.0, seed=0):
    """float64[R, U, P] of independent worlds."""
    rng, (of_people, of_prompts, rest) = np.random.default_rng(seed), WORLDS[world]
    return (
        mean
        + of_people * rng.standard_normal((repetitions, people, 1))
        + of_prompts * rng.standard_normal((repetitions, 1, prompts))
        + rest * rng.standard_normal((repetitions, people, prompts))
    )


@pytest.mark.parametrize("world", WORLDS)
def test_no_difference_is_called_none_in_95_of_100_cases(world):
    found = [statistics.interval(values).shown for values in draws(world, 40, 60, 200)]
    assert np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("world", ["noise", "prompts", "both"])
def test_two_points_are_found_with_the_predicted_number_of_prompts(world):
    people = 400
    pilot = draws(world, people, 200, 1, seed=1)[0]
    needed = statistics.prompts_needed(pilot, 0.02)
    assert needed is not None and needed < 500
    found = [
        statistics.interval(values).low > 0 for values in draws(world, people, needed, 200, 0.02, seed=2)
    ]
    assert 0.7 <= np.mean(found) <= 0.92  # 0.8 but for the pilot's own chance
    fewer = [
        statistics.interval(values).low > 0
        for values in draws(world, people, max(2, needed // 4), 200, 0.02, seed=3)
    ]
    assert np.mean(fewer) < 0.6


def test_no_number_of_prompts_makes_up_for_too_few_people():
    values = draws("people", 10, 100, 1)[0] + 0.5 * np.random.default_rng(1).standard_normal((10, 1))
    assert statistics.prompts_needed(values, 0.02) is None
    assert statistics.prompts_needed(values, 10.0) == 2


def test_the_variance_is_that_of_means_drawn_again():
    values = draws("both", 30, 20, 2000)
    found = np.mean([statistics.components(one).variance(30, 20) for one in values])
    people, prompts, rest = WORLDS["both"]
    truth = people**2 / 30 + prompts**2 / 20 + rest**2 / 600
    assert found == pytest.approx(truth, rel=0.06)  # components below 0 count 0
    assert values.mean(axis=(1, 2)).var() == pytest.approx(truth, rel=0.08)


def test_what_can_be_detected_and_what_is_needed_agree():
    values = draws("both", 50, 80, 1)[0]
    least = statistics.detectable(values)
    assert statistics.prompts_needed(values, least) == pytest.approx(80, abs=1)


@pytest.mark.parametrize("shape", [(1, 30), (30, 1)])
def test_one_person_or_one_prompt(shape):
    values = np.random.default_rng(0).standard_normal(shape) + 3
    low, high = statistics.interval(values)[1:]
    half = 2.045 * values.std(ddof=1) / np.sqrt(30)
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert low < values.mean() < high
    assert not statistics.interval(np.ones((1, 1))).shown


def test_wins_count_ties_half_and_nothing_where_a_judge_said_nothing():
    a, b = np.array([[1.0, 2.0], [np.nan, 1.0]]), np.array([[1.0], [0.0]])
    won = statistics.wins(a, b)
    assert won[0] == 0.75 and np.isnan(won[1])


def test_a_win_by_length_alone_is_none_at_equal_length():
    rng = np.random.default_rng(0)
    longer = rng.normal(20, 30, 4000)  # a is usually longer
    by_length = (rng.random(4000) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    assert by_length.mean() > 0.65
    assert statistics.length_controlled(by_length, longer) == pytest.approx(0.5, abs=0.03)
    better = (rng.random(4000) < 0.7).astype(float)
    assert statistics.length_controlled(better, longer) == pytest.approx(0.7, abs=0.04)
    assert statistics.length_controlled(np.ones(50), np.zeros(50)) > 0.99


def test_the_worst_tenth():
    assert statistics.worst(np.arange(20.0)) == 0.5
    assert statistics.worst(np.array([3.0, 1.0])) == 1.0


def test_nothing_is_said_of_equal_length_where_one_is_always_longer():
    won = np.array([1, 1, 0.75, 1, 0.5, 0.75])
    for longer in ([3, 4, 2, 5, 1, 2], [-3, -4, -2, -5, -1, -2], [3] * 6):
        assert np.isnan(statistics.length_controlled(won, np.array(longer)))
    assert np.isfinite(statistics.length_controlled(won, np.array([3, 4, 2, 5, 0, 2])))
