"""What the texts are worth, what people like, and both, told apart; every person held out once; answers carried over."""

import dataclasses

import numpy as np
import pytest

from rewards.comparison import compare, controls, judging, scoreboard
from rewards.comparison.references import ITEMS, ITEMS_TEXT
from rewards.data import division
from rewards.data.split import check_folds
from rewards.errors import UserError
from rewards.methods.base import Comparisons, ItemTable
from tests.rewards.planted import planted
from tests.rewards.small_models import SmallAggregate, SmallHouse

SETTINGS = scoreboard.Settings((0, 10), draws=2, controls=False)
MODELS = {"aggregate": SmallAggregate(dims=6), "small": SmallHouse(dims=6)}


def answered(worth: float, taste: float, num_users: int = 60):
    """60 people, 300 texts whose strengths no embedding shows; `worth` and `taste` are their standard deviations."""
    world = planted(
        3, width=6, num_basis=2, num_users=num_users, pairs=30, num_items=300, mean=np.zeros(2), spread=taste
    )
    prefs, rng = world.prefs, np.random.default_rng(5)
    strength = worth * rng.normal(size=prefs.num_items)
    phi = prefs.item_features @ world.directions
    personal = np.sum((phi[prefs.chosen] - phi[prefs.rejected]) * world.coef[prefs.user_index], axis=1)
    margin = strength[prefs.chosen] - strength[prefs.rejected] + personal
    return controls.redraw(prefs, margin, seed=11)


def board_of(prefs, **kept):
    common = {"held_out_prompts": 0.2, "split_seed": 0, "last": 10, "held_out_texts": 0.1} | kept
    table = ItemTable(prefs, prefs.item_features, {})
    cells = division.divide(prefs, held_out_people=0.4, **common)
    return scoreboard.compare(MODELS, table, cells, SETTINGS, judged="small")


def accuracy(board, name, cell="unseen_seen"):
    one = {**board["models"], **board["references"]}[name]
    return one["cells"][cell]["accuracy"]["mean"]


def test_the_worth_of_texts_is_no_taste():
    board = board_of(answered(worth=3.0, taste=0.0))
    assert accuracy(board, ITEMS) > accuracy(board, "aggregate") + 0.1
    assert accuracy(board, ITEMS_TEXT) > accuracy(board, "aggregate") + 0.1
    assert not board["helps"]
    # Strengths say nothing about texts that nobody judged; the other text of such a pair may be known.
    assert 0.5 < accuracy(board, ITEMS, "unseen_unseen") < accuracy(board, ITEMS) - 0.02


def test_tastes_are_no_worth_of_texts():
    board = board_of(answered(worth=0.0, taste=2.5))
    assert board["helps"] and board["status"] == "won" and judging.over_reference(board)["low"] > 0
    assert accuracy(board, ITEMS) < 0.6 and accuracy(board, "small") > 0.7
    # Tastes read off the text carry over to new texts.
    assert accuracy(board, "small", "unseen_unseen") > accuracy(board, "aggregate", "unseen_unseen") + 0.1
    own = board["models"]["small"]
    assert own["cells"]["unseen_unseen"]["loss_gain"]["mean"] > 0 and own["loss_gain"]["low"] > 0
    assert 0 <= own["reliability"]["error"] < 0.15


def test_a_gain_over_the_text_alone_that_counting_has_too_is_no_win():
    """Both are there, and the judged model reads texts alone: it is not shown to beat counting, so it has not won."""
    board = board_of(answered(worth=4.0, taste=3.5))
    assert (
        board["models"]["small"]["gain"][10]["low"] > 0
        and board["models"]["small"]["own_minus_swapped"]["low"] > 0
    )
    assert judging.over_reference(board)["low"] <= 0 and not board["helps"]
    assert "counting how often each text wins, with nothing personal, predicts" in board["sentence"]


def test_texts_are_held_out_where_no_prompt_can_be():
    prefs = answered(worth=1.0, taste=1.0)
    cells = division.divide(
        prefs, held_out_people=0.4, held_out_prompts=0.2, split_seed=0, last=10, held_out_texts=0.1
    )
    assert not cells.missing
    fitted = set(prefs.chosen[cells.training]) | set(prefs.rejected[cells.training])
    asked = set(prefs.chosen[cells.pool]) | set(prefs.rejected[cells.pool])
    for cell, mask in cells.tests.items():
        new = np.array(
            [
                not {c, r} <= (fitted | asked)
                for c, r in zip(prefs.chosen[mask], prefs.rejected[mask], strict=True)
            ]
        )
        assert new.all() if cell.endswith("_unseen") else not new.mean() > 0.05


def test_every_person_is_held_out_once():
    prefs = answered(worth=0.0, taste=3.0, num_users=16)
    parts = division.divide_in_folds(prefs, 2, held_out_prompts=0, split_seed=0, last=10)
    new = [np.unique(prefs.user_index[part.tests["unseen_seen"]]) for part in parts]
    assert sorted(np.concatenate(new).tolist()) == list(range(16))
    for part, people in zip(parts, new, strict=True):
        assert not np.isin(prefs.user_index[part.training], people).any()
    board = scoreboard.compare(
        MODELS, ItemTable(prefs, prefs.item_features, {}), parts, SETTINGS, judged="small"
    )
    assert board["people"] == 16 and board["folds"] == 2 and board["helps"]
    assert board["models"]["small"]["cells"]["seen_seen"]["people"] == 16
    assert "16 people, each held out once" in board["sentence"]
    with pytest.raises(UserError, match="9 folds of 16 people; give from 2 to 8 folds"):
        division.divide_in_folds(prefs, 9, held_out_prompts=0, split_seed=0, last=10)


@pytest.mark.parametrize(
    ("people", "fix"), [(3, "give 1, or bring more people"), (4, "give 2"), (9, "give from 2 to 4")]
)
def test_folds_that_cannot_be_name_what_can(people, fix):
    prefs = answered(worth=0.0, taste=1.0, num_users=people)
    with pytest.raises(UserError, match=f"7 folds of {people} people; {fix}"):
        check_folds(prefs, 7)


def test_a_small_taste_that_is_found_where_a_larger_is_not_is_chance():
    sizes = [{"points": 10, "found": True}, {"points": 20, "found": False}]
    said = judging.said_planted({"planted": sizes})
    assert said == "; planted tastes worth 20 points are not found, so that those worth 10 are is chance"
    sizes = [{"points": 10, "found": False}, {"points": 20, "found": True}]
    assert "worth 20 points are found, 10 are not" in judging.said_planted({"planted": sizes})


def test_planted_tastes_are_worth_what_they_are_said_to_be():
    prefs = answered(worth=0.0, taste=1.0)
    table = ItemTable(prefs, prefs.item_features, {})
    best = {}
    for worth in (0.05, 0.2):
        made = controls.planted_tastes(prefs, table, seed=1, worth=worth)
        best[worth] = made.best(np.ones(prefs.num_comparisons, bool))
        assert np.sqrt(np.mean(made.margin**2)) == pytest.approx(controls.PLANTED_MARGIN, rel=1e-6)
    small = dataclasses.replace(SETTINGS, controls=True)
    cells = division.divide(prefs, held_out_people=0.4, held_out_prompts=0, split_seed=0, last=10)
    board = scoreboard.compare(MODELS, table, cells, small, judged="small")
    sizes = {size["points"]: size for size in board["planted"]}
    assert set(sizes) == {10, 20} and sizes[20]["found"]
    assert sizes[10]["gain"]["mean"] < sizes[20]["gain"]["mean"]
    assert sizes[20]["gain"]["mean"] <= 0.25  # no more than knowing the taste is worth


def test_answers_that_carry_over_are_found():
    pairs = Comparisons(
        np.array([[1, 5, 6]]), np.array([[2, 6, 7]]), np.ones((1, 3), np.float32), np.ones((1, 3), np.float32)
    )
    asked = Comparisons(
        np.array([[6, 1]]), np.array([[9, 2]]), np.ones((1, 2), np.float32), np.array([[1, 0]], np.float32)
    )
    np.testing.assert_array_equal(compare.fresh_texts(asked, pairs), [[True, False, False]])


def test_a_win_on_texts_of_questions_alone_is_refused():
    board = board_of(answered(worth=0.0, taste=2.5))
    assert board["repeated_texts"]["share"] > 0.05 and board["repeated_texts"]["gain_without"]["low"] > 0
    nothing = {"share": 0.9, "people": 3, "gain_without": {"mean": 0.0, "low": -0.1, "high": 0.1}}
    for found in (nothing, {"share": 1.0, "people": 0}):
        leaking = board | {"repeated_texts": found}
        leaking["helps"] = judging.helps(leaking)
        leaking["status"] = judging.status(leaking)
        assert not leaking["helps"] and leaking["status"] == "unknown"
        said = judging.sentence(leaking)
        assert "hold a text that the same person was asked about" in said and "distinct_texts=true" in said


def test_what_was_planted_and_not_found_leaves_it_open():
    board = board_of(answered(worth=0.0, taste=0.0))
    board |= {"helps": False, "power": {"people": 24, "detectable": 0.06}, "repeated_texts": {"share": 0.0}}
    own = board["models"]["small"]
    own["gain"][10], own["own_minus_swapped"] = ({"mean": 0.0, "low": -0.02, "high": 0.02},) * 2
    for found, status in (([True, True], "lost"), ([False, True], "unknown"), ([False, False], "unknown")):
        sizes = [{"points": points, "found": one} for points, one in zip((10, 20), found, strict=True)]
        judged = board | {"planted": sizes}
        assert judging.status(judged) == status
        said = judging.sentence(judged | {"status": status})
        assert ("24 people cannot show a difference below 6 points" in said) == (status == "unknown")
        assert ("planted tastes worth 20 points are found, 10 are not found" in said) == (
            found == [False, True]
        )
        assert ("planted tastes worth 10 and 20 points are not found" in said) == (found == [False, False])


def test_a_worse_base_is_not_what_answers_did():
    board = board_of(answered(worth=0.0, taste=0.0))
    board |= {"helps": False, "power": {"people": 24, "detectable": 0.3}, "planted": []}
    own, below = board["models"]["small"], {"mean": -0.05, "low": -0.08, "high": -0.02}
    own["gain"], own["own_minus_swapped"] = {0: below, 10: below}, {"mean": 0.0, "low": -0.02, "high": 0.02}
    for learned, status in (({"mean": 0.0, "low": -0.02, "high": 0.02}, "unknown"), (below, "lost")):
        own["learned"] = learned
        assert judging.status(board) == status
        said = judging.sentence(board | {"status": status})
        assert ("worse than one model for everybody before any answer already (-5.0 points" in said) == (
            status == "unknown"
        )
