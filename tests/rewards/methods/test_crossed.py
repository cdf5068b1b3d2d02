"""Crossed effects: what belongs to the text, to the person, and to nobody is told apart."""

import dataclasses
import functools

import numpy as np

from rewards import methods
from rewards.methods.base import ItemTable
from rewards.methods.crossed import keys_of
from rewards.methods.crossed_tastes import choose
from tests.rewards.planted import planted

WIDTH, ITEMS, PEOPLE = 6, 40, 60
SETTINGS = {"num_basis": 2, "dims": WIDTH, "steps": 10, "folds": 2}


@functools.cache
def world(strength: float, seed: int = 0):
    """People who all want the same: a direction in the text and a strength a text."""
    made = planted(seed, width=WIDTH, num_basis=1, num_users=PEOPLE, pairs=20, num_items=ITEMS, spread=0.0)
    prefs, rng = made.prefs, np.random.default_rng(seed)
    own = strength * rng.normal(size=ITEMS)
    value = prefs.item_features @ made.directions[:, 0] * 0.7 + own
    margin = value[prefs.chosen] - value[prefs.rejected]
    stays = rng.random(len(margin)) < 1 / (1 + np.exp(-margin))
    prefs = dataclasses.replace(
        prefs,
        chosen=np.where(stays, prefs.chosen, prefs.rejected),
        rejected=np.where(stays, prefs.rejected, prefs.chosen),
    )
    return ItemTable(prefs, prefs.item_features, {"kind": "precomputed"}), own


@functools.cache
def fitted(strength: float):
    table, _ = world(strength)
    return methods.make("crossed", SETTINGS).fit(table, table.prefs)


def test_strengths_of_texts_are_found_and_nobody_is_given_a_taste():
    table, own = world(1.5)
    model = fitted(1.5)
    assert model.report["base_variance"] >= 0.3
    assert model.report["scale"] <= 0.1
    found = model.own(table) @ np.asarray(model.prior.mean)
    assert np.corrcoef(found, own)[0, 1] > 0.7


def test_without_strengths_the_text_explains_everything():
    table, _ = world(0.0)
    assert fitted(0.0).report["base_variance"] <= 0.1  # a grid in steps of about three, 1,200 answers
    assert np.std(fitted(0.0).own(table)[:, 0]) < 0.4 * np.std(fitted(1.5).own(table)[:, 0])


def test_a_judged_text_is_recognised_in_another_table_and_a_new_one_has_nothing():
    table, _ = world(1.5)
    model = fitted(1.5)
    turned = dataclasses.replace(
        table.prefs,
        item_text=tuple(reversed((*table.prefs.item_text[:-1], "a new one"))),
        item_prompt=table.prefs.item_prompt[::-1],
    )
    other = ItemTable(turned, table.embeddings[::-1], table.encoder)
    expected = model.own(table)
    np.testing.assert_array_equal(model.own(other)[1:], expected[:-1][::-1])
    assert not model.own(other)[0].any() and expected[-1].any()
    assert len(set(keys_of(table.prefs))) == ITEMS
    np.testing.assert_allclose(
        model.features(table) - model.as_written().features(table), expected, atol=1e-5
    )


def test_the_smallest_scale_within_one_standard_error_of_the_best_is_taken():
    rng = np.random.default_rng(0)
    person = rng.normal(size=200)
    noise = {key: 0.1 * rng.normal(size=200) for key in ((0.0, 0.0), (0.1, 0.0), (1.0, 0.0))}
    noise = {key: value - value.mean() for key, value in noise.items()}
    losses = {(0.0, 0.0): 0.5, (0.1, 0.0): 0.003, (1.0, 0.0): 0.0}
    grid = {key: losses[key] + person + noise[key] for key in losses}
    assert choose(grid)[:2] == (0.1, 0.0)  # a standard error is 0.01, and what people share does not count
    grid[0.1, 0.0] = grid[0.1, 0.0] + 0.2
    assert choose(grid)[:2] == (1.0, 0.0)
