"""Inputs that are none, to every reward model: one line each, neither a traceback nor a plausible number."""

import dataclasses
import functools

import numpy as np
import pytest

from rewards import methods as models
from rewards.errors import UserError
from rewards.methods.base import Comparisons, ItemTable
from rewards.types import Preferences
from tests.rewards.methods.test_contract import arrays_of, people_of

PEOPLE, ROWS, ITEMS, WIDTH = 6, 12, 30, 4
NETWORK = {"dims": WIDTH, "latent": 2, "hidden": 4, "steps": 3, "rounds": 1}
PAL = {"num_prototypes": 3, "width": 2, "dims": WIDTH, "steps": 3}
SETTINGS = {
    "house": {"num_basis": 2, "dims": WIDTH, "ridge": 1.0, "rounds": 1},
    "mixture": {"num_groups": 2, "dims": WIDTH},
    "pal_a": PAL,
    "pal_b": PAL,
    "per_user": {"dims": WIDTH},
    "aggregate": {"dims": WIDTH},
    "columns": {"rounds": 1},
    "vpl": NETWORK,
    "spl": NETWORK,
    "card": {"dims": WIDTH},
}
KINDS = list(models.MODELS)


def one(array, value, place: int | tuple[int, int] = 3):
    changed = np.array(array, np.result_type(array, type(value)) if isinstance(value, float) else None)
    changed[place] = value
    return changed


@functools.cache
def world():
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.permutation(ITEMS)[:2] for _ in range(PEOPLE * ROWS)]).astype(np.int32)
    embeddings = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    user = np.repeat(np.arange(PEOPLE, dtype=np.int32), ROWS)
    better = (np.diff(embeddings[pairs][..., :2].sum(-1), axis=1)[:, 0] > 0) ^ (rng.random(len(pairs)) < 0.2)
    pairs = np.where(better[:, None], pairs[:, ::-1], pairs)
    prefs = Preferences(
        prompts=("a", "b"), item_prompt=np.arange(ITEMS, dtype=np.int32) % 2,
        item_text=tuple(f"item {i}" for i in range(ITEMS)), item_features=None,
        user_ids=tuple(f"p{u}" for u in range(PEOPLE)), user_index=user, chosen=pairs[:, 0], rejected=pairs[:, 1],
        outcome=np.ones(len(pairs), np.float32), choice=np.tile(np.arange(ROWS, dtype=np.int32), PEOPLE),
        row=np.arange(1, len(pairs) + 1, dtype=np.int32), columns={}, source="world",
    )  # fmt: skip

    def embed(texts):
        return np.stack([np.random.default_rng(len(text)).normal(size=WIDTH) for text in texts])

    table = ItemTable(prefs, embeddings, {"kind": "lm"}, embed_texts=embed)
    return table, prefs, Comparisons.of(prefs, np.arange(len(pairs)).reshape(PEOPLE, ROWS))


def estimator(kind):
    settings = SETTINGS.get(kind, {"num_basis": 2, "dims": WIDTH, "steps": 3})
    return models.make(kind, settings)


@functools.cache
def fitted(kind):
    table, prefs, _ = world()
    return estimator(kind).fit(table, prefs)


TRAINING = {
    "indices between whole numbers": (lambda t: {"chosen": t.chosen + 0.5}, "chosen: must be an array of whole"),
    "whole numbers as floats": (lambda t: {"rejected": t.rejected.astype(np.float32)}, "rejected: must be"),
    "an index that is NaN": (lambda t: {"chosen": one(t.chosen, np.nan)}, "chosen: must be"),
    "an index of 2^40": (lambda t: {"rejected": one(t.rejected.astype(np.int64), 2**40)}, "row 4: rejected must be"),
    "people between whole numbers": (lambda t: {"user_index": t.user_index / 2}, "user_index: must be"),
    "a person of -2": (lambda t: {"user_index": one(t.user_index, -2)}, "row 4: user_index must be"),
    "flags as indices": (lambda t: {"chosen": t.chosen > 3}, "chosen: must be"),
    "no array": (lambda t: {"chosen": None}, "chosen: must be"),
    "ragged": (lambda t: {"chosen": [[1], [2, 3]]}, "chosen: must be"),
    "outcomes in words": (lambda t: {"outcome": np.array(["1"] * len(t.outcome))}, "outcome: must be an array of num"),
    "outcomes of objects": (lambda t: {"outcome": np.array([1, None] * (len(t.outcome) // 2))}, "outcome: must be"),
    "complex outcomes": (lambda t: {"outcome": t.outcome + 0j}, "outcome: must be"),
    "an infinite outcome": (lambda t: {"outcome": one(t.outcome, -np.inf)}, "row 4: outcome must be"),
    "outcomes above 1 by a little": (lambda t: {"outcome": t.outcome * 1.001}, "row 1: outcome must be"),
    "an outcome too few": (lambda t: {"outcome": t.outcome[1:]}, "outcome of shape"),
    "a column of outcomes": (lambda t: {"outcome": t.outcome[:, None]}, "outcome of shape"),
    "a person too few": (lambda t: {"user_index": t.user_index[1:]}, "user_index of shape"),
    "an item too few": (lambda t: {"chosen": t.chosen[1:]}, "chosen of shape"),
    "nobody in the table": (lambda t: {"user_ids": ()}, "user_index must be"),
    "itself": (lambda t: {"rejected": t.chosen}, "row 1: compares an item with itself"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINING)
def test_training_data_that_is_none(kind, name):
    (table, prefs, _), (change, message) = world(), TRAINING[name]
    with pytest.raises(UserError, match=message) as caught:
        estimator(kind).fit(table, dataclasses.replace(prefs, **change(prefs)))
    assert "\n" not in str(caught.value)


TABLES = {
    "no columns": (lambda x: x[:, :0], "one line of numbers"),
    "words": (lambda x: x.astype(str), "must be an array of numbers"),
    "objects": (lambda x: np.where(x > 9, x, None), "must be an array of numbers"),
    "complex": (lambda x: x + 1j, "must be an array of numbers"),
    "beyond float32": (lambda x: x.astype(np.float64) * 1e300, "above 1e"),
    "squares beyond float32": (lambda x: x * 1e30, "above 1e"),
    "an axis more": (lambda x: x[None], "embeddings of shape"),
    "minus infinity": (lambda x: one(x, -np.inf), "item 3 holds"),
    "an item too many": (lambda x: np.concatenate([x, x[:1]]), "embeddings of shape"),
    "nothing": (lambda x: None, "must be an array of numbers"),
}


@pytest.mark.parametrize("name", TABLES)
def test_embeddings_that_are_none(name):
    (table, _, _), (change, message) = world(), TABLES[name]
    with pytest.raises(UserError, match=message) as caught:
        dataclasses.replace(table, embeddings=change(table.embeddings))
    assert "\n" not in str(caught.value)


def test_items_under_a_prompt_that_there_is_not():
    table, prefs, _ = world()
    for index, message in ((2, "item 5: item_prompt must be from 0 to 1"), (-1, "item 5")):
        with pytest.raises(UserError, match=message):
            moved = dataclasses.replace(prefs, item_prompt=one(prefs.item_prompt, index, 5))
            dataclasses.replace(table, prefs=moved)


PAIRS = {
    "indices between whole numbers": (lambda a: {"chosen": a.chosen + 0.5}, "chosen: must be", True),
    "an index that is NaN": (lambda a: {"rejected": one(a.rejected, np.nan, (1, 2))}, "rejected: must be", True),
    "just outside": (lambda a: {"chosen": one(a.chosen, ITEMS, (1, 2))}, "person 1, answer 2: chosen", True),
    "from the end": (lambda a: {"rejected": one(a.rejected, -1, (0, 5))}, "person 0, answer 5: rejected", True),
    "outcomes in words": (lambda a: {"outcome": a.outcome.astype(str)}, "outcome: must be", True),
    "outcomes below 0": (lambda a: {"outcome": one(a.outcome, -1e-3, (2, 0))}, "person 2, answer 0: outcome", False),
    "infinite outcomes": (lambda a: {"outcome": a.outcome * np.inf}, "person 0, answer 0: outcome", False),
    "weights in words": (lambda a: {"weight": a.weight.astype(str)}, "weight: must be", True),
    "a weight below 0": (lambda a: {"weight": one(a.weight, -0.5, (1, 1))}, "person 1, answer 1: weight", True),
    "one answer against itself": (
        lambda a: {"chosen": one(a.chosen, int(a.rejected[1, 4]), (1, 4))}, "person 1, answer 4: compares", False),
    "one line for all": (lambda a: {n: getattr(a, n)[0] for n in ("chosen", "rejected", "outcome", "weight")},
                         "parts of shapes", True),
    "nobody": (lambda a: {n: getattr(a, n)[:0] for n in ("chosen", "rejected", "outcome", "weight")}, "of nobody", True),
    "other people for the weights": (lambda a: {"weight": a.weight[:1]}, "parts of shapes", True),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_pairs_that_are_none(kind):
    table, _, answers = world()
    model = fitted(kind)
    for change, message, predicting in PAIRS.values():
        bad = dataclasses.replace(answers, **change(answers))
        with pytest.raises(UserError, match=message) as caught:
            model.adapt(table, bad)
        assert "\n" not in str(caught.value)
        for judge in (model.margins, model.predict, model.score) if predicting else ():
            with pytest.raises(UserError, match=message):
                judge(table, model.seen(), bad)


@pytest.mark.parametrize("kind", KINDS)
def test_people_of_another_number_or_that_are_none(kind):
    table, _, answers = world()
    model = fitted(kind)
    people = model.seen()
    for some in (people_of(people, slice(0, 1)), people_of(people, slice(0, 4)), people_of(people, [0] * 7)):
        with pytest.raises(UserError, match="one state a line"):
            model.predict(table, some, answers)
    for none in (None, "ada", ()):
        with pytest.raises(UserError, match="holds no states"):
            model.predict(table, none, answers)
    with pytest.raises(UserError, match="state of person 0 holds a value that is not finite"):
        model.predict(table, spoiled(people), answers)


def spoiled(state):
    if dataclasses.is_dataclass(state):
        parts = {f.name: spoiled(getattr(state, f.name)) for f in dataclasses.fields(state)}
        return dataclasses.replace(state, **parts)
    if hasattr(state, "dtype"):
        return state if state.dtype == object else state * np.nan
    return type(state)(spoiled(part) for part in state)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_of_another_width_are_refused(kind):
    table, _, answers = world()
    model = fitted(kind)
    for embeddings in (table.embeddings[:, :2], np.tile(table.embeddings, 2)):
        other = dataclasses.replace(table, embeddings=embeddings)
        for call in (
            lambda other=other: model.predict(other, model.seen(), answers),
            lambda other=other: model.adapt(other, answers),
        ):
            with pytest.raises(UserError) as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_and_what_stands_behind_no_weight_change_nothing(kind):
    table, _, answers = world()
    model = fitted(kind)
    some = answers.first(5)
    behind = np.arange(ROWS) >= 5
    odd = dataclasses.replace(
        some,
        chosen=np.where(behind, -7, some.chosen).tolist(),
        rejected=np.where(behind, 10**6, some.rejected).astype(np.int64),
        outcome=np.where(behind, np.nan, some.outcome),
        weight=some.weight > 0,
    )
    expected = model.adapt(table, some)
    for a, b in zip(arrays_of(model.adapt(table, odd)), arrays_of(expected), strict=True):
        if a.dtype == object:  # cards in words
            assert a.tolist() == b.tolist()
            continue
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    chances = model.predict(table, expected, odd)
    np.testing.assert_allclose(chances, model.predict(table, expected, some), rtol=1e-4, atol=1e-5)
    assert (chances[:, 5:] == 0.5).all()


@pytest.mark.parametrize(
    "check",
    [
        test_answers_and_pairs_that_are_none,
        test_people_of_another_number_or_that_are_none,
        test_embeddings_of_another_width_are_refused,
        test_lists_and_what_stands_behind_no_weight_change_nothing,
    ],
)
def test_one_model_is_checked_with_the_fast_tests(check):
    check("aggregate")


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_to_fit_is_said(kind):
    table, prefs, _ = world()
    for count in (0, 1):
        few = prefs.select(np.arange(prefs.num_comparisons) < count)
        try:
            people = estimator(kind).fit(table, few).seen()
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert count and all(np.isfinite(array).all() for array in arrays_of(people))
