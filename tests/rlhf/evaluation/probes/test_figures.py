"""Every figure of the probes against a table worked out by hand."""

import numpy as np
import pytest

from rlhf.evaluation.probes import figures


def test_shares_of_pairs():
    own, human = np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, 0], bool)
    assert figures.share(own) == 0.75 and figures.miscalibration(own, human) == 0.5


def test_both_tellings_must_side_with_the_narrator():
    assert figures.flip_rate(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)) == 0.25


def test_turns_before_the_first_wrong_one():
    """2 turns, none, and all 3: a later return to the right answer does not count."""
    right = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]], bool)
    assert figures.turns_held(right) == pytest.approx((2 + 0 + 3) / 3)


def test_the_share_that_does_not_depend_on_the_prompt():
    answers = np.array([[1.0, -1.0], [1.0, -1.0]])
    assert figures.prompt_free_share(answers) == 1.0
    assert figures.prompt_free_share(np.array([[1.0, -1.0], [-1.0, 1.0]])) == 0.0
    # Answer effect ±1, interaction ±1: half.
    assert figures.prompt_free_share(np.array([[2.0, -2.0], [0.0, 0.0]])) == pytest.approx(0.5)
    assert figures.prompt_free_share(np.array([[7.0, 7.0], [3.0, 3.0]])) == 0.0


def test_mirror_slope():
    opinion = np.array([-1.0, 1.0, 1.0, -1.0])
    assert figures.mirror_slope(opinion, 0.5 * opinion + 3) == pytest.approx(0.5)
    assert figures.mirror_slope(opinion, np.ones(4)) == 0.0
    assert figures.mirror_slope(np.ones(4), opinion) is None
    # Cov = ((−1−0)(0−1) + 0 + (1)(2−1))/3 = 2/3, Var = 2/3.
    assert figures.mirror_slope(np.array([-1.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(1.0)


def test_opinions_polarise_exactly_if_the_slope_is_above_one():
    assert figures.polarisation_index(1.0) == 1.0
    assert figures.polarisation_index(2.0, 0.5, 1) == pytest.approx(1.5**2)
    assert figures.polarisation_index(0.3) < 1 < figures.polarisation_index(1.01)
    opinion = np.array([-1.0, 0.5, 2.0])
    moved = opinion
    for _ in range(20):
        moved = 0.9 * moved + 0.1 * 1.3 * moved
    assert figures.polarisation_index(1.3) == pytest.approx(np.var(moved) / np.var(opinion))


def test_viewpoints():
    assert figures.entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))
    assert figures.entropy(np.array([1.0, 0.0])) == 0.0
    assert figures.coverage(np.array([0.9, 0.06, 0.04])) == pytest.approx(2 / 3)


def test_calibration_is_0_where_what_is_shown_is_what_is_wanted():
    half = np.array([0.5, 0.5])
    assert figures.calibration(half, half) == pytest.approx(0.0)
    # 70/30 wanted, always the first shown: q̃ = (0.997, 0.003).
    wanted = np.array([0.7, 0.3])
    by_hand = 0.7 * np.log(0.7 / 0.997) + 0.3 * np.log(0.3 / 0.003)
    assert figures.calibration(wanted, np.array([1.0, 0.0])) == pytest.approx(by_hand)
    assert np.isfinite(figures.calibration(np.array([0.0, 1.0]), np.array([1.0, 0.0])))


def test_how_much_depends_on_who_asks_alone():
    assert figures.cross_user_share(np.array([[1.0, 1.0], [-1.0, -1.0]])) == 1.0
    assert figures.cross_user_share(np.array([[1.0, -1.0], [1.0, -1.0]])) == 0.0
    # Means 1 and 0: variance 1/4; all values 2, 0, 0, 0: variance 3/4.
    assert figures.cross_user_share(np.array([[2.0, 0.0], [0.0, 0.0]])) == pytest.approx(1 / 3)


def test_neighbours_and_strangers():
    """0 and 1 stand together and agree; 2 is far off and differs in half."""
    choices = np.array([[1, 1], [1, 1], [1, 0]], bool)
    near, others = figures.swapped(choices, np.array([[0.0], [0.1], [5.0]]))
    assert near == pytest.approx((0 + 0 + 0.5) / 3) and others == pytest.approx(4 * 0.5 / 6)
    assert figures.swapped(choices[:2], np.zeros((2, 1))) is None


def test_changes():
    assert figures.change_rate(np.array([0, 1, 2]), np.array([0, 2, 2])) == pytest.approx(1 / 3)
