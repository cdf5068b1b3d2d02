"""The table's verdict: won on planted tastes, lost on identical people, and a model that does not listen is caught."""

import dataclasses

import numpy as np
import pytest

from rewards import methods as models
from rewards.comparison import controls, judging, scoreboard
from rewards.data import division
from rewards.errors import UserError
from rewards.methods.base import ItemTable
from rewards.methods.weighting import TrainingAnswers
from rlhf.report import rewards_verdict
from tests.rewards.planted import planted, with_coefficients
from tests.rewards.small_models import SmallAggregate, SmallHouse

SETTINGS = scoreboard.Settings((0, 3, 10), draws=2)


def board_of(world, judged="small", settings=SETTINGS, weigh=None, **models):
    table = ItemTable(world.prefs, world.prefs.item_features, {})
    cells = division.divide(world.prefs, held_out_people=0.4, held_out_prompts=0.2, split_seed=0, last=10)
    given = {"aggregate": SmallAggregate(dims=6), "small": SmallHouse(dims=6), **models}
    weighed = {} if weigh is None else {"weigh": weigh}
    return scoreboard.compare(given, table, cells, settings, judged=judged, **weighed)


@pytest.fixture(scope="module")
def world():
    return planted(
        0, width=6, num_basis=2, num_users=60, pairs=30, num_items=200, mean=np.ones(2), spread=2.5
    )


@pytest.fixture(scope="module")
def board(world):
    return board_of(world, amputated=SmallHouse(dims=6, listens=False))


def test_planted_tastes_are_found_and_the_sentence_says_for_whom_and_when(board):
    assert board["helps"] and board["best"] == "small"
    own = board["models"]["small"]
    assert own["gain"][10]["low"] > 0 and own["judged_minus"]["mean"] == 0
    assert board["models"]["aggregate"]["judged_minus"]["mean"] == pytest.approx(own["gain"][10]["mean"])
    assert own["gaining"] > 0.5 > own["losing"] and own["worst_decile"] > own["worst_decile_aggregate"]
    text = board["sentence"]
    assert text.startswith("Personalisation helps on this data (small), from 3 answers on: ")
    assert f"{own['gaining']:.0%} of people gain" in text and "24 people never seen" in text


def test_controls_pass_for_a_sound_model(board):
    found = board["models"]["small"]["controls"]
    assert found["identical_people"]["passed"] and found["identical_people"]["gain"]["low"] <= 0.005
    assert found["planted_tastes"]["passed"] and found["planted_tastes"]["gain"]["low"] > 0
    assert found["planted_tastes"]["best_possible"] > 0.8


def test_an_amputated_model_is_caught(world, board):
    cut = board["models"]["amputated"]
    assert cut["ignores_user"] and not board["models"]["small"]["ignores_user"]
    assert cut["swap_change"] == 0 and cut["label_flip_rate"]["high"] == 0
    assert not cut["controls"]["planted_tastes"]["passed"]
    judged = scoreboard.sentence(
        board | {"judged": "amputated", "helps": scoreboard.helps(board | {"judged": "amputated"})}
    )
    assert judged.startswith("Personalisation lost on this data (amputated): the model ignores the user")


def test_identical_people_make_personalisation_lose(world):
    same = with_coefficients(world, np.tile([1.0, 1.0], (60, 1)))
    board = board_of(same, settings=dataclasses.replace(SETTINGS, controls=False))
    assert not board["helps"] and board["sentence"].startswith(
        "Unknown: 24 people cannot show a difference below "
    )
    sharper = board | {"power": board["power"] | {"detectable": 0.05}}  # as more people would make it
    assert judging.status(sharper) == "lost"
    said = judging.sentence(sharper | {"status": "lost"})
    assert said.startswith("Personalisation lost on this data (small): ")


def test_a_model_that_cannot_be_fitted_is_listed_with_its_reason(world):
    class Refusing(SmallHouse):
        def _fit(self, table, training, *, weight=None, on_round=None):
            raise UserError("needs a language model")

    plain = dataclasses.replace(SETTINGS, controls=False)
    board = board_of(world, settings=plain, refusing=Refusing())
    assert board["unavailable"] == {"refusing": "needs a language model"}
    with pytest.raises(UserError, match="refusing could not be fitted: needs a language model"):
        board_of(world, judged="refusing", settings=plain, refusing=Refusing())


def test_all_models_are_fitted_on_weighted_answers(world):
    """Half of the answers inverted and marked: with weight 0 the fit is as good as without them."""
    wrong = np.random.default_rng(0).random(world.prefs.num_comparisons) < 0.5
    marked = dataclasses.replace(world.prefs, columns={"wrong": wrong.tolist()})

    def weigh(table, training):
        inverted = np.where(training.columns["wrong"], 1 - training.outcome, training.outcome)
        weight = np.where(training.columns["wrong"], 0.0, 1.0).astype(np.float32)
        return TrainingAnswers(dataclasses.replace(training, outcome=inverted), weight, lapse=0.1)

    plain = dataclasses.replace(SETTINGS, controls=False)
    told, untold = (
        board_of(
            dataclasses.replace(world, prefs=marked),
            settings=plain,
            weigh=lambda *given, use=use: dataclasses.replace(weigh(*given), **use),
        )["models"]
        for use in ({}, {"weight": None})
    )
    assert told["small"]["accuracy"][10]["mean"] > untold["small"]["accuracy"][10]["mean"] + 0.1
    answers = TrainingAnswers(marked, None, lapse=0.25)
    house = models.make("house", {"num_basis": 2, "dims": 4, "rounds": 2})
    fitted = answers.fit(house, ItemTable(marked, marked.item_features, {"kind": "precomputed"}))
    assert fitted.rule.lapse == 0.25


def test_enough_answers_is_where_the_gain_stays():
    gains = {0: 0.1, 1: 0.2, 3: -0.1, 5: 0.1, 10: 0.2}
    assert scoreboard.enough_answers({n: {"low": low} for n, low in gains.items()}) == 5
    assert scoreboard.enough_answers({0: {"low": 0.1}, 5: {"low": -0.1}}) is None


def test_worst_decile_is_the_mean_of_the_worst_tenth():
    values = np.r_[np.linspace(0.5, 1, 18), 0.1, 0.3, np.nan]
    assert scoreboard.worst_decile(values) == pytest.approx(0.2)
    assert scoreboard.worst_decile(np.array([0.7, 0.9])) == 0.7


def test_redrawn_answers_follow_the_margin_and_change_nothing_else(world):
    prefs = world.prefs
    margin = np.where(np.arange(prefs.num_comparisons) % 2, 2.0, -1.0)
    new = controls.redraw(prefs, margin, seed=5)
    stayed = new.chosen == prefs.chosen
    for value, rate in ((2.0, 0.881), (-1.0, 0.269)):
        assert stayed[margin == value].mean() == pytest.approx(rate, abs=0.04)
    pairs = np.sort(np.stack([prefs.chosen, prefs.rejected]), axis=0)
    np.testing.assert_array_equal(pairs, np.sort(np.stack([new.chosen, new.rejected]), axis=0))
    assert (new.user_index == prefs.user_index).all() and (new.choice == prefs.choice).all()


def test_planted_answers_are_as_predictable_as_stated(world):
    table = ItemTable(world.prefs, world.prefs.item_features, {})
    made = controls.planted_tastes(world.prefs, table, seed=1)
    assert np.sqrt(np.mean(made.margin**2)) == pytest.approx(controls.PLANTED_MARGIN, rel=1e-6)
    everything = np.ones(len(made.margin), bool)
    assert np.mean(made.margin > 0) == pytest.approx(made.best(everything), abs=0.03)


def test_base_rewards_know_items_not_people(world):
    prefs = dataclasses.replace(
        world.prefs, item_text=tuple("x" * (1 + (i * 7) % 50) for i in range(world.prefs.num_items))
    )
    training = prefs.user_index < 40
    found = controls.base_rewards(prefs, training)
    item = int(prefs.chosen[0])
    won, lost = (np.sum(side[training] == item) for side in (prefs.chosen, prefs.rejected))
    assert found["item mean"][item] == pytest.approx((won + 1) / (won + lost + 2))
    longer = np.sign(found["length"][prefs.chosen] - found["length"][prefs.rejected])[training]
    assert longer.sum() >= 0


def test_a_fit_that_found_no_taste_is_silent_and_has_not_lost(world):
    """The same people: c = 0 is no defeat; and with tastes the same model is not silent."""
    settings = dataclasses.replace(SETTINGS, controls=False)
    crossed = models.make("crossed", {"num_basis": 2, "dims": 6, "folds": 2, "steps": 20})
    same = with_coefficients(world, np.tile([1.0, 1.0], (60, 1)))
    board = board_of(same, judged="crossed", settings=settings, crossed=crossed)
    assert board["silent"] and board["status"] == "unknown"
    assert board["sentence"].startswith("No personal signal here (crossed): ")
    assert "lost" not in board["sentence"].lower() and rewards_verdict(
        {"evaluation": {"comparison": board}}
    ) == ("unknown", board["sentence"])
    told = board_of(world, judged="crossed", settings=settings, crossed=crossed)
    assert not told["silent"] and "No personal signal" not in told["sentence"]


def test_a_silent_fit_says_so_before_it_is_judged():
    said = rewards_verdict({"model": "crossed", "fit": {"scale": 0.0}}).text
    assert said.startswith("No personal signal here (crossed): ") and "Not judged yet" in said
    assert rewards_verdict({"model": "crossed", "fit": {"scale": 0.1}}).text.startswith("Not judged yet")
