"""Every reward model through one checklist: the same small planted world, the same questions."""

import dataclasses
import functools
import importlib.util
import json
import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from rewards import hashed
from rewards import methods as models
from rewards.basis import store as reward_store
from rewards.errors import UserError
from rewards.methods import pal, store
from rewards.methods.base import Comparisons, ItemTable
from rewards.methods.linear import FLOOR, LinearFitted
from rewards.people import population
from tests.rewards.planted import last, planted

TRAINED, NEW, WIDTH = 40, 20, 12
SMALL_NETWORK = {"dims": WIDTH, "latent": 4, "hidden": 16, "steps": 20, "rounds": 2}
SETTINGS = {
    "house": {"num_basis": 3, "dims": WIDTH, "ridge": 1.0, "rounds": 6},
    "mixture": {"num_groups": 4, "dims": WIDTH},
    "pal_a": {"num_prototypes": 4, "width": 3, "dims": WIDTH, "steps": 75},
    "pal_b": {"num_prototypes": 4, "width": 3, "dims": WIDTH, "steps": 75},
    "per_user": {"dims": WIDTH},
    "columns": {"rounds": 6},
    "vpl": SMALL_NETWORK,
    "spl": SMALL_NETWORK,
    "aggregate": {"dims": WIDTH},
    "crossed": {"num_basis": 4, "dims": WIDTH, "steps": 30, "folds": 2},
}
LOW_RANK = {"num_basis": 4, "dims": WIDTH, "steps": 75}


def _present(kind):
    """Models that can be imported and need no texts: the card reads them, and has tests of its own."""
    module = models.MODELS[kind].split(":")[0]
    return importlib.util.find_spec(module) is not None and kind != "card"


KINDS = [kind for kind in models.MODELS if _present(kind)]
NETWORKS = ("vpl", "spl")  # they learn from more people than this world has, which their own tests see to
LINEAR = [kind for kind in KINDS if kind not in NETWORKS]
LEARNED = [kind for kind in LINEAR if kind != "columns"]  # `columns` is given its basis and its gauge


@dataclasses.dataclass(frozen=True)
class World:
    table: ItemTable
    train: object
    answers: Comparisons  # of everybody, 40 each
    test: Comparisons  # of everybody, 40 each
    new: np.ndarray  # bool[U]: people outside the fit


def rows_of(prefs, mask):
    rows = [np.flatnonzero(mask & (prefs.user_index == user)) for user in range(prefs.num_users)]
    return np.stack([own[:40] for own in rows])


@functools.cache
def world(seed=0):
    made = planted(
        seed, width=WIDTH, num_basis=3, num_users=TRAINED + NEW, pairs=100, num_items=400, spread=2.0
    )
    prefs = made.prefs
    test = last(prefs, 40)
    new = np.arange(prefs.num_users) >= TRAINED
    table = ItemTable(prefs, prefs.item_features, {"kind": "precomputed"})
    train = prefs.select(~test & ~new[prefs.user_index])
    return World(
        table,
        train,
        Comparisons.of(prefs, rows_of(prefs, ~test)),
        Comparisons.of(prefs, rows_of(prefs, test)),
        new,
    )


@functools.cache
def estimator(kind):
    return models.make(kind, SETTINGS.get(kind, LOW_RANK))


@functools.cache
def fitted(kind):
    w = world()
    return estimator(kind).fit(w.table, w.train)


def text_part(model):
    """The model as a policy sees it: what is known of single texts besides left out."""
    return model.as_written() if hasattr(model, "as_written") else model


def people_of(state, index):
    """Some of the people of a state: an array, a tuple or a dataclass of arrays, people first."""
    if isinstance(state, np.ndarray | jax.Array):
        return state[index]
    if dataclasses.is_dataclass(state):
        parts = {f.name: people_of(getattr(state, f.name), index) for f in dataclasses.fields(state)}
        return dataclasses.replace(state, **parts)
    return type(state)(people_of(part, index) for part in state)


def arrays_of(state):
    if isinstance(state, np.ndarray | jax.Array):
        return [np.asarray(state)]
    if dataclasses.is_dataclass(state):
        return [array for f in dataclasses.fields(state) for array in arrays_of(getattr(state, f.name))]
    return [array for part in state for array in arrays_of(part)]


@pytest.mark.parametrize("kind", KINDS)
def test_estimators_are_frozen_and_fitting_changes_nothing(kind):
    model = estimator(kind)
    before = dataclasses.asdict(model)
    assert fitted(kind).kind == model.kind == kind
    assert dataclasses.asdict(model) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.dims = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted(kind).report = {}


@pytest.mark.parametrize("kind", KINDS)
def test_seen_people_stand_in_the_order_of_the_user_table(kind):
    w, model = world(), fitted(kind)
    people = model.seen()
    assert {len(array) for array in arrays_of(people)} == {TRAINED + NEW}
    assert all(np.isfinite(array).all() for array in arrays_of(people))
    if kind in NETWORKS:
        return
    own = model.score(w.table, people, w.test)[:TRAINED].mean()
    other = model.score(w.table, people_of(people, np.roll(np.arange(TRAINED + NEW), 1)), w.test)[
        1:TRAINED
    ].mean()
    if kind == "aggregate":
        assert own == pytest.approx(other, abs=0.05)
    else:
        assert own > other + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_without_answers_everybody_is_the_generic_person(kind):
    w, model = world(), fitted(kind)
    people = model.adapt(w.table, w.answers.first(0))
    for array in arrays_of(people):
        np.testing.assert_array_equal(array, np.broadcast_to(array[:1], array.shape))
    # Padding is no answer: other rows behind a weight of 0 change nothing, no room for answers gives the same.
    shuffled = dataclasses.replace(
        w.answers.first(0), chosen=w.answers.rejected, outcome=1 - w.answers.outcome
    )
    empty = Comparisons(*(getattr(w.answers, f.name)[:, :0] for f in dataclasses.fields(Comparisons)))
    for answers in (shuffled, empty):
        for a, b in zip(arrays_of(model.adapt(w.table, answers)), arrays_of(people), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Nothing known: nothing preferred where there is no population, else about what serves everybody.
    if kind in ("per_user", "pref", "rfm"):
        assert not model.margins(w.table, people, w.test).any()
    elif kind in LINEAR:
        aggregate = fitted("aggregate").score(w.table, fitted("aggregate").seen(), w.test).mean()
        assert model.score(w.table, people, w.test).mean() > max(0.55, aggregate - 0.05)
    # Somebody who was in the table but not in the fit is that person too.
    for a, b in zip(arrays_of(model.seen()), arrays_of(people), strict=True):
        if isinstance(model, LinearFitted):
            np.testing.assert_allclose(a[TRAINED:], b[TRAINED:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LINEAR)
def test_answers_help_new_people(kind):
    w, model = world(), fitted(kind)
    accuracy = {
        n: model.score(w.table, model.adapt(w.table, w.answers.first(n)), w.test)[w.new].mean()
        for n in (0, 5, 40)
    }
    if kind == "aggregate":
        assert accuracy[0] == accuracy[40]
    else:
        # By chance (two binomials of 800 with sd .017 each) less than once in 1,000 for a model that ignores them.
        assert accuracy[40] > accuracy[0] + 0.08, accuracy
        assert accuracy[40] > accuracy[5] - 0.02, accuracy


@pytest.mark.parametrize("kind", KINDS)
def test_predict_and_score_follow_the_margins(kind):
    w, model = world(), fitted(kind)
    people = model.adapt(w.table, w.answers.first(5))
    margins, chances = model.margins(w.table, people, w.test), model.predict(w.table, people, w.test)
    assert margins.shape == chances.shape == w.test.weight.shape
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-margins.astype(np.float64))), atol=1e-5)
    swapped = dataclasses.replace(w.test, chosen=w.test.rejected, rejected=w.test.chosen)
    np.testing.assert_allclose(model.margins(w.table, people, swapped), -margins, rtol=1e-3, atol=1e-4)
    expected = np.where(margins == 0, 0.5, margins > 0).mean(axis=1)
    np.testing.assert_allclose(model.score(w.table, people, w.test), expected, atol=1e-6)
    part = w.test.first(7)
    assert not model.margins(w.table, people, part)[:, 7:].any()
    assert (model.predict(w.table, people, part)[:, 7:] == 0.5).all()
    assert np.isnan(model.score(w.table, people, w.test.first(0))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_does_not_depend_on_who_else_is_asked(kind):
    w, model = world(), fitted(kind)
    answers = w.answers.first(6)
    alone = Comparisons(*(getattr(answers, f.name)[3:4, :6] for f in dataclasses.fields(Comparisons)))
    together = people_of(model.adapt(w.table, answers), slice(3, 4))
    for a, b in zip(arrays_of(together), arrays_of(model.adapt(w.table, alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_disk_is_exact(kind, tmp_path):
    w, model = world(), fitted(kind)
    identity = store.save_model(tmp_path / "m", model)
    again = store.load_model(tmp_path / "m", expected_hash=identity)
    assert type(again) is type(model) and again.kind == kind and store.model_hash(again) == identity
    assert again.settings() == json.loads(json.dumps(model.settings()))
    for people, read in (
        (model.seen(), again.seen()),
        (model.adapt(w.table, w.answers.first(5)), again.adapt(w.table, w.answers.first(5))),
    ):
        for a, b in zip(arrays_of(people), arrays_of(read), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(
            model.predict(w.table, people, w.test), again.predict(w.table, read, w.test)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_another_hash_and_damaged_tensors_are_refused(kind, tmp_path):
    store.save_model(tmp_path, fitted(kind))
    with pytest.raises(UserError, match="is needed") as caught:
        store.load_model(tmp_path, expected_hash="0" * 64)
    assert "\n" not in str(caught.value)
    path, record = tmp_path / store.TENSORS, hashed.read_record(tmp_path / store.RECORD)
    good = safetensors.numpy.load_file(path)
    # The largest tensor, by a rule that does not depend on the order of names.
    name = max(good, key=lambda key: (good[key].size, zlib.crc32(key.encode())))
    damaged = {
        f"'{name}' is missing": {key: value for key, value in good.items() if key != name},
        "'more' is not part": good | {"more": np.zeros(1, np.float32)},
        f"'{name}' is float32": good | {name: np.ascontiguousarray(good[name][..., :-1])},
        f"'{name}' is float16": good | {name: good[name].astype(np.float16)},
        "bytes differ": good | {name: good[name] + np.float32(1)},
    }
    for message, tensors in damaged.items():
        safetensors.numpy.save_file(tensors, path)
        with pytest.raises(UserError, match=message) as caught:
            store.load_model(tmp_path)
        assert "\n" not in str(caught.value)
    safetensors.numpy.save_file(good, path)
    for change, message in (
        ({"settings": {}}, "setting"),
        ({"more": 1}, "'more' is not part"),
        ({"kind": "lora"}, "kind 'lora'"),
    ):
        hashed.write_record(tmp_path / store.RECORD, record | change)
        with pytest.raises(UserError, match=message):
            store.load_model(tmp_path)
    hashed.write_record(tmp_path / store.RECORD, record)
    # A tensor that the settings do not know is refused even when the record lists it.
    with pytest.raises(UserError) as caught:
        models.fitted_type(kind).restore(good | {"more": np.zeros(1, np.float32)}, fitted(kind).settings())
    assert "more" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LINEAR)
def test_the_order_of_people_does_not_matter(kind):
    w = world()
    order = np.random.default_rng(1).permutation(w.train.num_users)
    place = np.argsort(order)
    train = dataclasses.replace(
        w.train,
        user_ids=tuple(w.train.user_ids[user] for user in order),
        user_index=place[w.train.user_index].astype(np.int32),
    )
    again = estimator(kind).fit(w.table, train)
    expected = fitted(kind).predict(w.table, fitted(kind).seen(), w.test)
    found = again.predict(w.table, people_of(again.seen(), place), w.test)
    # Sums run in another order and L-BFGS amplifies rounding along flat directions.
    assert np.abs(found - expected).mean() < 0.01


@pytest.mark.parametrize("kind", LEARNED)
def test_predictions_survive_an_invertible_change_of_embeddings(kind):
    """Whitening on all dimensions makes the fit a function of differences of reward, not of the embeddings."""
    w = world()
    change = np.random.default_rng(2).normal(size=(WIDTH, WIDTH)) + 2 * np.eye(WIDTH)
    if kind == "columns":  # rewards as they are: only their units may change, their axes are meant
        change = np.diag(np.abs(np.diag(change)))
    moved = (w.table.embeddings @ change + 3.0).astype(np.float32)
    table = dataclasses.replace(w.table, embeddings=moved)
    again = estimator(kind).fit(table, w.train)
    for people, others in (
        (fitted(kind).seen(), again.seen()),
        (
            fitted(kind).adapt(w.table, w.answers.first(10)),
            again.adapt(table, w.answers.first(10)),
        ),
    ):
        expected = fitted(kind).predict(w.table, people, w.test)
        found = again.predict(table, others, w.test)
        assert np.abs(found - expected).mean() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_linear_models_drive_a_policy_and_others_say_why_not(kind, tmp_path):
    model = fitted(kind)
    if kind in NETWORKS:
        assert model.policy_refusal and "\n" not in model.policy_refusal
        return
    assert model.policy_refusal is None
    identity = store.save_model(tmp_path, model)
    run = reward_store.load_reward_run(tmp_path)
    assert run.hash == identity and run.extra == {"lapse": 0.0, "model": kind}
    np.testing.assert_array_equal(run.prior.cov, model.prior.cov)
    np.testing.assert_array_equal(
        LinearFitted.features(dataclasses.replace(model, basis=run.basis), world().table),
        text_part(model).features(world().table),
    )
    counts = [60] * TRAINED + [0] * NEW
    ids = list(world().train.user_ids)
    population.save_people(tmp_path, identity, ids, model.coef_mean, model.coef_precision, counts)
    assert len(population.load_people(run).posteriors) == TRAINED + NEW
    # A population that can be standardised, in the canonical gauge.
    values = np.linalg.eigvalsh(model.prior.cov.astype(np.float64))
    assert values[0] > 0.5 * FLOOR
    if kind not in LEARNED:
        return
    if kind != "columns":  # whose axes are the columns themselves
        np.testing.assert_allclose(model.prior.mean[1:], 0, atol=1e-3 * (1 + model.prior.mean[0]))
    phi = text_part(model).features(world().table)
    used = np.unique(np.concatenate([world().train.chosen, world().train.rejected]))
    cov = np.cov(phi[used].T, bias=True)
    cov = np.diag(np.diag(cov)) if kind == "columns" else cov
    np.testing.assert_allclose(cov, np.eye(len(values)), atol=1e-3)


@pytest.mark.parametrize("kind", LINEAR)
def test_comparisons_of_weight_0_are_not_looked_at(kind):
    """Half of the answers turned round: with weight 0 nothing changes, with weight 1 much does."""
    w = world()
    half = np.arange(w.train.num_comparisons) % 2 == 0
    turned = dataclasses.replace(w.train, outcome=np.where(half, w.train.outcome, 1 - w.train.outcome))

    def chances(train, weight):
        model = estimator(kind).fit(w.table, train, weight=weight)
        return model.predict(w.table, model.seen(), w.test)[:TRAINED]

    weight = half.astype(np.float32)
    expected = chances(w.train, weight)
    assert np.abs(chances(turned, weight) - expected).mean() < 1e-3
    assert np.abs(chances(turned, None) - expected).mean() > 0.05


def test_names_and_settings_are_checked():
    with pytest.raises(UserError, match="'lore2' is unknown; did you mean 'lore'"):
        models.make("lore2")
    with pytest.raises(UserError, match=r"pref.num_bases: no such setting; did you mean 'num_basis'"):
        models.make("pref", {"num_bases": 3})
    with pytest.raises(UserError, match=r"^rfm.ridge: -1.0: .*greater than 0$"):
        models.make("rfm", {"ridge": -1.0})
    with pytest.raises(UserError, match="pref.regularise"):
        models.make("pref", {"regularise": "none"})
    assert models.make("house", {"num_basis": [2, 4]}).num_basis == (2, 4)


@pytest.mark.parametrize("kind", LEARNED)
def test_bad_data_is_refused_in_one_line(kind):
    w = world()
    ties = dataclasses.replace(w.train, outcome=np.full_like(w.train.outcome, 0.5))
    with pytest.raises(UserError, match="ties") as caught:
        estimator(kind).fit(w.table, ties)
    assert "\n" not in str(caught.value)


def one(array, value, place=3):
    changed = np.array(array)
    changed[place] = value
    return changed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"outcome": one(p.outcome, np.nan)}, "row 4: outcome must be"),
        (lambda p: {"outcome": one(p.outcome, 7)}, "row 4: outcome must be"),
        (lambda p: {"outcome": one(p.outcome, -0.1)}, "row 4: outcome must be"),
        (lambda p: {"chosen": one(p.chosen, 400)}, "row 4: chosen must be from 0 to 399"),
        (lambda p: {"rejected": one(p.rejected, -1)}, "row 4: rejected must be from 0 to 399"),
        (lambda p: {"user_index": one(p.user_index, 99)}, "row 4: user_index must be from 0 to 59"),
        (lambda p: {"chosen": one(p.chosen, p.rejected[3])}, "row 4: compares an item with itself"),
    ],
)
def test_comparisons_that_are_none_are_refused_by_row(kind, change, message):
    w = world()
    train = dataclasses.replace(w.train, row=np.arange(1, w.train.num_comparisons + 1))
    train = dataclasses.replace(train, **change(train))
    with pytest.raises(UserError, match=message) as caught:
        estimator(kind).fit(w.table, train)
    assert "\n" not in str(caught.value)
    weight = np.ones(w.train.num_comparisons, np.float32)
    for bad in (weight[:-1], -weight, 0 * weight, one(weight, np.nan)):
        with pytest.raises(UserError, match="weight"):
            estimator(kind).fit(w.table, w.train, weight=bad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message", "predicting"),
    [
        (lambda a: {"outcome": one(a.outcome, np.nan, (1, 2))}, "person 1, answer 2: outcome", False),
        (lambda a: {"outcome": one(a.outcome, 7, (1, 2))}, "person 1, answer 2: outcome", False),
        (
            lambda a: {"chosen": one(a.chosen, 400, (1, 2))},
            "answer 2: chosen must be an item from 0 to 399",
            True,
        ),
        (lambda a: {"rejected": one(a.rejected, -401, (1, 2))}, "answer 2: rejected", True),
        (lambda a: {"chosen": a.rejected}, "person 0, answer 0: compares an item with itself", False),
        (lambda a: {"weight": one(a.weight, np.inf, (1, 2))}, "answer 2: weight", True),
        (lambda a: {"weight": a.weight[:, :-1]}, "parts of shapes", True),
    ],
)
def test_answers_and_pairs_that_are_none_are_refused(kind, change, message, predicting):
    w, model = world(), fitted(kind)
    with pytest.raises(UserError, match=message):
        model.adapt(w.table, dataclasses.replace(w.answers, **change(w.answers)))
    if predicting:
        with pytest.raises(UserError, match=message):
            model.predict(w.table, model.seen(), dataclasses.replace(w.test, **change(w.test)))


def test_embeddings_that_are_none_make_no_table():
    w = world()
    hole = w.table.embeddings.copy()
    hole[7, 2] = np.nan
    for embeddings, message in (
        (w.table.embeddings[:-1], "for 400 items"),
        (w.table.embeddings[:, 0], "for 400 items"),
        (hole, "item 7 holds a value that is not finite"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(w.table, embeddings=embeddings)
    with pytest.raises(UserError, match="prompt 0 holds"):
        dataclasses.replace(w.table, prompt_embeddings=np.full((1, 3), np.inf))


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_against_itself_is_predicted_as_even(kind):
    w, model = world(), fitted(kind)
    pairs = dataclasses.replace(w.test, chosen=w.test.rejected)
    np.testing.assert_array_equal(model.predict(w.table, model.seen(), pairs), 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_column_is_enough(kind):
    """Embeddings of width 1: everybody may weigh one number, and nobody more."""
    w = world()
    prefs = dataclasses.replace(w.table.prefs, prompts=("a", "b"), item_prompt=np.arange(400) % 2)
    table = ItemTable(prefs, w.table.embeddings[:, :1], {"kind": "precomputed"})
    train = dataclasses.replace(w.train, prompts=prefs.prompts, item_prompt=prefs.item_prompt)
    settings = SETTINGS.get(kind, LOW_RANK) | ({"num_basis": 1} if kind == "house" else {})
    model = models.make(kind, settings).fit(table, train)
    chances = model.predict(table, model.adapt(table, w.answers), w.test)
    assert np.isfinite(chances).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_and_people_does_not_matter(kind):
    w, rng = world(), np.random.default_rng(3)
    rows, order = rng.permutation(w.train.num_comparisons), rng.permutation(w.train.num_users)
    place = np.argsort(order)
    turned = w.train.select(np.ones(len(rows), bool))
    turned = dataclasses.replace(
        turned,
        **{name: getattr(turned, name)[rows] for name in ("chosen", "rejected", "outcome", "choice", "row")},
        user_index=place[turned.user_index[rows]].astype(np.int32),
        user_ids=tuple(w.train.user_ids[user] for user in order),
    )
    again = estimator(kind).fit(w.table, turned)
    for mine, theirs in (
        (fitted(kind).seen(), people_of(again.seen(), place)),
        (fitted(kind).adapt(w.table, w.answers), again.adapt(w.table, w.answers)),
    ):
        difference = fitted(kind).predict(w.table, mine, w.test) - again.predict(w.table, theirs, w.test)
        assert np.abs(difference).mean() < 0.005


@pytest.mark.parametrize("kind", LINEAR)
def test_a_row_twice_is_a_row_of_weight_2(kind):
    w = world()
    twice = np.arange(w.train.num_comparisons) % 3 == 0
    rows = np.concatenate([np.arange(len(twice)), np.flatnonzero(twice)])
    names = ("user_index", "chosen", "rejected", "outcome", "choice", "row")
    doubled = dataclasses.replace(w.train, **{name: getattr(w.train, name)[rows] for name in names})
    models_ = (
        estimator(kind).fit(w.table, doubled),
        estimator(kind).fit(w.table, w.train, weight=np.where(twice, 2.0, 1.0).astype(np.float32)),
    )
    one_way, other = (model.predict(w.table, model.seen(), w.test) for model in models_)
    assert np.abs(one_way - other).mean() < 0.005


@pytest.mark.parametrize("kind", ["pal_a", "pal_b"])
def test_more_prototypes_than_room_are_as_many_as_are_independent(kind):
    """Two dimensions have room for three ideal points; the reward is still that of all nine prototypes."""
    w = world()
    settings = {"num_prototypes": 9, "width": 2, "dims": 2, "steps": 50}
    raw = {}

    def remember(params):
        raw.update(params)
        return independent(params)

    independent = pal._independent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pal, "_independent", remember)
        model = models.make(kind, settings).fit(w.table, w.train)
    assert model.basis.num_basis == 3 and len(raw["prototypes"]) == 9
    fewer, shrink = independent(raw)
    np.testing.assert_allclose(shrink.sum(axis=1), 1.0, atol=1e-9)
    for name in {"prototypes", "turns"} & set(raw):
        again = np.tensordot(shrink, fewer[name], axes=([1], [0]))
        np.testing.assert_allclose(again, raw[name], atol=2e-3 * np.abs(raw[name]).max())
    accuracy = model.score(w.table, model.adapt(w.table, w.answers), w.test)[w.new].mean()
    assert accuracy > 0.6
