"""Cells that do not leak, one set of questions for all models, and a swap that is really another person's answers."""

import dataclasses

import numpy as np
import pytest

from rewards.comparison import compare, measures
from rewards.data import division
from rewards.errors import UserError
from rewards.methods.base import Comparisons, ItemTable
from tests.rewards.planted import planted
from tests.rewards.small_models import SmallAggregate, SmallHouse


def many_prompts(prefs, count):
    """The same comparisons, items spread over `count` prompts, pairs kept inside one prompt."""
    rng = np.random.default_rng(3)
    prompt = np.arange(prefs.num_items) % count
    partner = rng.integers(0, prefs.num_items // count, prefs.num_comparisons) * count + prompt[prefs.chosen]
    rejected = np.where(partner == prefs.chosen, (partner + count) % prefs.num_items, partner)
    return dataclasses.replace(
        prefs,
        prompts=tuple(f"prompt {i}" for i in range(count)),
        item_prompt=prompt.astype(np.int32),
        rejected=rejected.astype(np.int32),
    )


@pytest.fixture(scope="module")
def world():
    return planted(
        0, width=6, num_basis=2, num_users=50, pairs=30, num_items=200, mean=np.zeros(2), spread=2.5
    )


@pytest.fixture(scope="module")
def replayed(world):
    """(table, protocol, fitted house, its scores)."""
    table = ItemTable(world.prefs, world.prefs.item_features, {})
    cells = division.divide(world.prefs, held_out_people=0.4, held_out_prompts=0.2, split_seed=0, last=10)
    protocol = compare.Protocol.build(world.prefs, cells, (0, 5, 10), 2, 0)
    fitted = SmallHouse(dims=6).fit(table, world.prefs.select(cells.training))
    return table, protocol, fitted, compare.score_model(fitted, table, protocol)


def test_cells_share_neither_people_nor_prompts_with_the_fit(world):
    prefs = many_prompts(world.prefs, 10)
    cells = division.divide(prefs, held_out_people=0.3, held_out_prompts=0.2, split_seed=1, last=5)
    assert set(cells.tests) == set(division.CELLS) and not cells.missing
    prompt = prefs.item_prompt[prefs.chosen]
    fitted_people, fitted_prompts = (set(values[cells.training]) for values in (prefs.user_index, prompt))
    assert len(fitted_prompts) == 8
    for cell, mask in cells.tests.items():
        person, where = cell.split("_")
        assert mask.any() and not (mask & (cells.training | cells.pool)).any()
        assert all((user in fitted_people) == (person == "seen") for user in prefs.user_index[mask])
        assert all((p in fitted_prompts) == (where == "seen") for p in prompt[mask])
    everything = np.stack([cells.training, cells.pool, *cells.tests.values()])
    assert everything.sum(axis=0).max() == 1
    assert not set(prefs.user_index[cells.pool]) & fitted_people


def test_one_prompt_leaves_no_unseen_prompts_and_says_so(replayed):
    assert replayed[1].division.missing == {
        "seen_unseen": "the data has one prompt",
        "unseen_unseen": "the data has one prompt",
    }


def test_distinct_texts_uses_every_text_once_a_person(world):
    few = dataclasses.replace(
        world.prefs, chosen=world.prefs.chosen % 40, rejected=40 + world.prefs.rejected % 40
    )
    cells = division.divide(
        few, held_out_people=0.3, held_out_prompts=0.0, split_seed=0, last=5, distinct_texts=True
    )
    used = np.any([cells.training, cells.pool, *cells.tests.values()], axis=0)
    for user in range(few.num_users):
        own = few.user_index == user
        texts = np.concatenate([few.chosen[own & used], few.rejected[own & used]])
        assert len(set(texts)) == len(texts) > 20
        # Nothing more could be added: every comparison left out repeats a text.
        assert all(
            np.isin([few.chosen[row], few.rejected[row]], texts).any() for row in np.flatnonzero(own & ~used)
        )
        assert sum(mask[own].sum() for mask in cells.tests.values()) == 5


def test_questions_are_the_persons_own_pool_in_an_order_that_models_share(world, replayed):
    _, protocol, *_ = replayed
    again = compare.Protocol.build(world.prefs, protocol.division, (0, 5, 10), 2, 0)
    for order, same in zip(protocol.orders, again.orders, strict=True):
        np.testing.assert_array_equal(order, same)
        for user, rows in zip(protocol.people, order, strict=True):
            assert len(set(rows)) == len(rows) == 10
            assert protocol.division.pool[rows].all() and (world.prefs.user_index[rows] == user).all()
    assert (protocol.orders[0] != protocol.orders[1]).any()


def test_own_answers_find_the_planted_taste(world, replayed):
    table, protocol, _, scores = replayed
    assert np.nanmean(scores.accuracy[10]) > np.nanmean(scores.accuracy[0]) + 0.1
    assert np.nanmean(scores.swapped) < np.nanmean(scores.accuracy[10]) - 0.1
    assert np.nanmean(scores.chosen[5]) > np.nanmean(scores.accuracy[0]) + 0.05
    assert np.nanmean(scores.label_flips) > 0.5 and scores.change > 0.1
    # Independently: no answer means the prior mean, by the fitted features themselves.
    _, _, fitted, _ = replayed
    margin = (fitted.features(table)[world.prefs.chosen] - fitted.features(table)[world.prefs.rejected]) @ (
        fitted.rule.mean
    )
    test = protocol.division.tests["unseen_seen"]
    expected = [np.mean(margin[test & (world.prefs.user_index == user)] > 0) for user in protocol.people]
    np.testing.assert_allclose(scores.accuracy[0], expected)


def test_swap_predicts_with_the_answers_of_somebody_else(replayed):
    """Against adapting everybody to the partner's answers, instead of moving the tests."""
    table, protocol, fitted, _ = replayed
    answers = Comparisons.of(protocol.prefs, protocol.orders[0]).first(10)
    tests = protocol.new["unseen_seen"]
    swapped, flips, change = compare._swap(fitted, table, fitted.adapt(table, answers), tests, draw=4)
    order = np.random.default_rng([7919, 4]).permutation(len(tests.weight))
    giver = np.empty(len(order), int)  # whose answers stand for u's own
    giver[np.roll(order, 1)] = order
    assert (giver != np.arange(len(giver))).all()
    moved = Comparisons(*(getattr(answers, f.name)[giver] for f in dataclasses.fields(answers)))
    own = fitted.margins(table, fitted.adapt(table, answers), tests)
    others = fitted.margins(table, fitted.adapt(table, moved), tests)
    np.testing.assert_allclose(swapped, measures.person_accuracy(others, tests), atol=1e-6)
    np.testing.assert_allclose(flips, np.mean(np.sign(own) != np.sign(others), axis=1), atol=1e-6)
    sigmoid = [1 / (1 + np.exp(-m)) for m in (own, others)]
    assert change == pytest.approx(np.mean(np.abs(sigmoid[0] - sigmoid[1])), rel=1e-4)


def test_one_reward_for_all_ignores_answers(replayed):
    table, protocol, *_ = replayed
    fitted = SmallAggregate(dims=6).fit(table, table.prefs.select(protocol.division.training))
    scores = compare.score_model(fitted, table, protocol)
    assert scores.change == 0 and np.nanmax(scores.label_flips) == 0 and scores.chosen is None
    np.testing.assert_array_equal(scores.swapped, scores.accuracy[10])


def test_nobody_asked_is_refused():
    assert compare.judged_count((0, 3, 20)) == 3 and compare.judged_count((0, 20)) == 20
    with pytest.raises(UserError, match="holds only 0"):
        compare.judged_count((0,))
