"""The default model: house where texts are one person's, else what people left out say."""

import dataclasses

import numpy as np
import pytest

import rewards
from rewards import methods
from rewards.data.split import split_people
from rewards.methods import trial
from rewards.methods.auto import Auto
from rewards.methods.base import ItemTable
from rewards.methods.crossed import CrossedFitted
from rewards.types import Preferences

PEOPLE, TEXTS, EACH, WIDTH = 60, 40, 16, 4


def planted(
    strength: float, taste: float, *, own_texts: bool = False, seed: int = 0
) -> tuple[ItemTable, Preferences]:
    """Texts of one prompt with a strength that their embeddings do not hold, and people who differ along one direction."""
    rng = np.random.default_rng(seed)
    count = PEOPLE * 2 * EACH if own_texts else TEXTS
    items = rng.normal(size=(count, WIDTH)).astype(np.float32)
    worth = 0.5 * items[:, 0] + strength * rng.normal(size=count)
    own = taste * rng.normal(size=PEOPLE)
    user = np.repeat(np.arange(PEOPLE), EACH)
    if own_texts:
        chosen, rejected = np.arange(count).reshape(2, -1)
    else:
        pairs = [rng.permutation(TEXTS)[: 2 * EACH].reshape(2, EACH) for _ in range(PEOPLE)]
        chosen, rejected = np.concatenate(pairs, axis=1)
    margin = worth[chosen] - worth[rejected] + own[user] * (items[chosen, 1] - items[rejected, 1])
    outcome = (rng.random(len(user)) < 1 / (1 + np.exp(-margin))).astype(np.float32)
    prefs = Preferences(
        prompts=("Which one?",),
        item_prompt=np.zeros(count, np.int32),
        item_text=tuple(f"text {number}" for number in range(count)),
        item_features=items,
        user_ids=tuple(f"p{number}" for number in range(PEOPLE)),
        user_index=user.astype(np.int32),
        chosen=chosen.astype(np.int32),
        rejected=rejected.astype(np.int32),
        outcome=outcome,
        choice=np.tile(np.arange(EACH), PEOPLE).astype(np.int32),
        row=np.arange(len(user), dtype=np.int32),
        columns={},
        source="planted",
    )
    return ItemTable(prefs, items, {"kind": "precomputed"}), prefs


SMALL = {"num_basis": 2, "dims": 4, "rounds": 4}


@pytest.fixture(scope="module")
def strong():
    """Texts with strengths, and what `rewards.fit` makes of them when no model is named."""
    table, prefs = planted(strength=2.0, taste=0.0)
    return table, prefs, rewards.fit(prefs, **SMALL)


def test_strengths_that_the_text_does_not_hold_make_it_crossed(strong, tmp_path):
    table, prefs, made = strong
    fitted = made.model
    choice = fitted.report["choice"]
    assert isinstance(fitted, CrossedFitted) and fitted.kind == "crossed" == choice["chosen"]
    assert choice["loss_nats"]["crossed"] < choice["loss_nats"]["house"] - 0.01
    assert made.method == "crossed"
    made.write(tmp_path / "run")
    again = rewards.load(tmp_path / "run")
    assert again.method == "crossed" and again.model.report["choice"] == choice
    named = Auto(**SMALL).crossed().fit(table, prefs)
    np.testing.assert_array_equal(fitted.effects, named.effects)
    np.testing.assert_array_equal(fitted.coef_mean, named.coef_mean)


def test_tastes_alone_leave_house_as_it_is_when_named(caplog):
    table, prefs = planted(strength=0.0, taste=2.0)
    with caplog.at_level("INFO", logger="chorus"):
        fitted = methods.make("auto", SMALL).fit(table, prefs)
    named = methods.make("house", SMALL).fit(table, prefs)
    assert fitted.kind == "house"
    for name in ("coef_mean", "coef_precision"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(named, name))
    assert fitted.report == named.report | {"choice": fitted.report["choice"]}
    assert any(
        "house, chosen by 20 people" in line and "fit.model names one" in line for line in caplog.messages
    )


def test_texts_of_one_person_each_are_not_tried(monkeypatch):
    table, prefs = planted(strength=2.0, taste=0.0, own_texts=True)
    assert trial.shared_texts(prefs) == 0
    monkeypatch.setattr("rewards.methods.auto.left_out_losses", lambda *_: pytest.fail("tried"))
    fitted = methods.make("auto", SMALL).fit(table, prefs)
    assert fitted.kind == "house" and "0% of the texts" in fitted.report["choice"]["said"]


def test_people_left_out_are_placed_by_other_texts_than_they_are_asked_about():
    table, prefs = planted(strength=0.0, taste=0.0)
    seen = []

    class Spy(methods.estimator("aggregate")):
        def _fit(self, table, training, **rest):
            seen.append(training)
            return super()._fit(table, training, **rest)

    mixed = np.random.default_rng(1).permutation(prefs.num_comparisons)
    prefs = dataclasses.replace(
        prefs,
        **{
            name: getattr(prefs, name)[mixed]
            for name in ("user_index", "chosen", "rejected", "outcome", "choice", "row")
        },
    )
    asked = np.zeros(prefs.num_comparisons, bool)
    asked[prefs.user_index < 20] = True
    unseen = trial._new_texts(prefs, 0)
    met = trial.episodes(prefs, asked, unseen)
    assert set(met.owner) == set(range(20)) and met.new.any() and not met.new.all()
    assert (np.bincount(met.owner[~met.new]) == 3).all() and (met.context >= 0).any(axis=1).all()
    for owner, new, context, target in zip(met.owner, met.new, met.context, met.target, strict=True):
        given, tests = context[context >= 0], target[target >= 0]
        texts = {int(t) for row in tests for t in (prefs.chosen[row], prefs.rejected[row])}
        assert not texts & {int(t) for row in given for t in (prefs.chosen[row], prefs.rejected[row])}
        assert (prefs.user_index[[*given, *tests]] == owner).all()
        assert (unseen[tests] == new).all() and not unseen[given].any()
    losses = trial.left_out_losses({"one": Spy(dims=4)}, table, prefs, None, 0)
    held = trial._new_texts(prefs, 0)
    texts = np.unique(np.concatenate([seen[0].chosen, seen[0].rejected]))
    assert len(np.unique(seen[0].user_index)) == 40 and len(losses["one"]) == 20
    usual = prefs.select(~held)
    assert set(texts) <= set(np.concatenate([usual.chosen, usual.rejected]).tolist())


def test_few_people_are_not_tried_and_left_out_people_of_no_weight_neither(strong):
    table, prefs, _ = strong
    few = prefs.select(prefs.user_index < 8)
    fitted = methods.make("auto", SMALL).fit(table, few)
    assert fitted.kind == "house" and "8 people" in fitted.report["choice"]["said"]
    left_out = split_people(prefs, trial.PEOPLE, 0)[1]
    with pytest.raises(rewards.UserError, match="0 people left out"):
        trial.left_out_losses({}, table, prefs, np.where(left_out, 0.0, 1.0), 0)
