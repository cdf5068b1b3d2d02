"""VPL and SPL: answers are used, in any number and order; a model that ignores them says so."""

import dataclasses

import jax
import numpy as np
import pytest

from rewards.errors import UserError
from rewards.methods import variational_data, variational_net
from rewards.methods.base import Comparisons, ItemTable
from rewards.methods.variational import SPL, VPL, Latents, SPLFitted, VPLFitted
from scripts.experiments import np_toy

BRIEF = {
    "hidden": 32,
    "latent": 8,
    "max_context": 10,
    "steps": 600,
    "rounds": 3,
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
}
SPARSE = {"hidden": 16, "latent": 4, "max_context": 6, "steps": 40, "rounds": 2, "kl_weight": 0.0}


@pytest.fixture(scope="module")
def toy():
    return np_toy.make(0, 200, 40), np_toy.make(1, 300, 40)


@pytest.fixture(scope="module", params=[VPL, SPL])
def fitted(request, toy):
    train, _ = toy
    return request.param(**BRIEF).fit(np_toy.table_of(train), train)


@pytest.fixture(scope="module")
def sketch(toy):
    """A model hardly trained, for what must hold of any parameters."""
    train, _ = toy
    return SPL(**SPARSE).fit(np_toy.table_of(train), train)


def test_more_answers_tell_the_two_kinds_of_people_apart(fitted, toy):
    # No model can be above .75, .875, .969, .992, 1.0; the short fit comes within a few points of it.
    accuracy = np_toy.curve(fitted, toy[1])
    assert 0.70 < accuracy[0] < 0.78
    assert np.all(np.array(accuracy[1:]) > [0.84, 0.93, 0.955, 0.965])
    assert np.all(np.array(accuracy) < [0.78, 0.895, 0.985, 1.0, 1.0])


def test_monitors_see_that_the_person_is_used(fitted):
    report = fitted.report
    assert report["active_units"] >= 1 and report["warnings"] == []
    assert report["swap_loss"] > 0.1  # the other person is of the other kind half of the time
    assert report["kl_nats"] > 0.3
    assert report["held_out_people"] == 30


def test_posterior_collapse_is_reported(toy):
    train, test = toy
    model = VPL(**BRIEF | {"kl_weight": 1000.0}).fit(np_toy.table_of(train), train)
    assert model.report["active_units"] == 0
    assert "ignores the person" in model.report["warnings"][0]
    assert abs(model.report["swap_loss"]) < 0.01
    accuracy = np_toy.curve(model, test, (0, 10))
    assert abs(accuracy[1] - accuracy[0]) < 0.01


def test_order_and_padding_of_answers_do_not_matter(sketch, toy):
    _, test = toy
    table, rng = np_toy.table_of(test), np.random.default_rng(0)
    rows = np.arange(test.num_comparisons).reshape(test.num_users, -1)[:5, :7]
    plain = sketch.adapt(table, Comparisons.of(test, rows))
    moved = sketch.adapt(table, Comparisons.of(test, rng.permuted(rows, axis=1)))
    padded = np.full((5, 20), -1)
    padded[:, 3:10] = rows
    spread = sketch.adapt(table, Comparisons.of(test, padded))
    assert np.abs(plain.mean).max() > 1e-3
    for other in (moved, spread):
        assert np.allclose(plain.mean, other.mean, atol=1e-5)
        assert np.allclose(plain.scale, other.scale, atol=1e-5)


def test_rejected_was_better_is_the_same_answer_read_backwards(sketch, toy):
    _, test = toy
    table = np_toy.table_of(test)
    answers = Comparisons.of(test, np.arange(6)[None])
    backwards = dataclasses.replace(
        answers, chosen=answers.rejected, rejected=answers.chosen, outcome=1 - answers.outcome
    )
    assert np.allclose(sketch.adapt(table, answers).mean, sketch.adapt(table, backwards).mean, atol=1e-6)


def test_no_answers_and_no_columns_are_the_same_person(sketch, toy):
    _, test = toy
    table = np_toy.table_of(test)
    answers = Comparisons.of(test, np.arange(8).reshape(2, 4))
    none = sketch.adapt(table, answers.first(0))
    empty = sketch.adapt(table, Comparisons.of(test, np.zeros((2, 0), int)))
    assert np.isfinite(none.mean).all() and np.allclose(none.mean, empty.mean, atol=1e-6)
    assert np.array_equal(none.mean[0], none.mean[1])
    pairs = Comparisons.of(test, np.array([[0, -1], [1, 2]]))
    margins = sketch.margins(table, none, pairs)
    assert margins[0, 1] == 0 and np.all(margins[1] != 0)


def test_calls_in_parts_are_the_same(sketch, toy, monkeypatch):
    _, test = toy
    table = np_toy.table_of(test)
    rows = np.arange(test.num_comparisons).reshape(test.num_users, -1)[:7]
    answers = Comparisons.of(test, rows[:, :5])
    whole = sketch.adapt(table, answers)
    margins = sketch.margins(table, whole, answers)
    monkeypatch.setattr("rewards.methods.variational.CELLS", 2 * 16 * 5)
    assert np.allclose(sketch.adapt(table, answers).mean, whole.mean, atol=1e-5)
    assert np.allclose(sketch.margins(table, whole, answers), margins, atol=1e-5)


def test_kl_has_its_half_and_the_flow_its_determinant():
    mean, log_scale = np.array([[0.5, -1.0]], np.float32), np.array([[0.2, -0.7]], np.float32)
    q = variational_net.Latent(mean, log_scale, np.zeros((1, 8), np.float32))
    # ∫ q log(q / p) on a grid, dimension by dimension.
    grid, total = np.linspace(-12, 12, 200001), 0.0
    for m, s in zip(mean[0], np.exp(log_scale[0]), strict=True):
        log_q = -0.5 * ((grid - m) / s) ** 2 - np.log(s)
        density = np.exp(log_q) / np.sqrt(2 * np.pi)
        total += np.trapezoid(density * (log_q + 0.5 * grid**2), grid)
    assert np.isclose(variational_net.kl_to_prior(q)[0], total, atol=1e-4)

    shape = variational_net.Shape(2, 3, 8, flows=2, film=True)
    net = variational_net.Net(shape, rngs=variational_net.nnx.Rngs(0))
    context = jax.random.normal(jax.random.key(0), (1, 8))
    z = jax.random.normal(jax.random.key(1), (1, 3))
    jacobian = jax.jacobian(lambda z: net.transform(z[None], context)[0][0])(z[0])
    assert np.isclose(net.transform(z, context)[1][0], np.linalg.slogdet(np.asarray(jacobian))[1], atol=1e-5)


def test_an_episode_predicts_answers_that_are_not_in_its_context():
    people, length = 6, 9
    own = np.arange(people * length).reshape(people, length)
    weight = (np.arange(length) < np.arange(4, 10)[:, None]).astype(np.float32)  # 4 … 9 answers
    answers = variational_net.Answers(own, own, np.ones_like(weight), weight)
    plan = variational_net.Plan(64, 5, 4, False, 1e-3, 0.0, 10)
    episode = jax.jit(variational_net.episode, static_argnames="plan")
    sizes = set()
    for seed in range(5):
        context, targets = episode(jax.random.key(seed), answers, plan)
        for c, cw, t, tw in zip(context.chosen, context.weight, targets.chosen, targets.weight, strict=True):
            given, asked = set(c[cw > 0].tolist()), set(t[tw > 0].tolist())
            assert asked and not given & asked and len(asked) == int(tw.sum())
            assert len({number // length for number in given | asked}) == 1
            assert all(weight.ravel()[number] > 0 for number in given | asked)
            sizes.add(len(given))
    assert sizes == {0, 1, 2, 3, 4, 5}


def test_guidance_mirrors_the_latent(toy):
    train, test = toy
    table = np_toy.table_of(test)
    answers = Comparisons.of(test, np.arange(600).reshape(60, 10))
    flipped = dataclasses.replace(answers, outcome=1 - answers.outcome)

    def asymmetry(guidance):
        model = SPL(**SPARSE | {"steps": 200}, guidance=guidance, flows=0).fit(np_toy.table_of(train), train)
        own, other = model.adapt(table, answers).mean, model.adapt(table, flipped).mean
        return np.mean((own + other) ** 2) / np.mean((own - other) ** 2)

    assert asymmetry(1.0) < 0.3 * asymmetry(0.0)


def test_the_same_seed_gives_the_same_model(sketch, toy):
    again = SPL(**SPARSE).fit(np_toy.table_of(toy[0]), toy[0])
    assert all(np.array_equal(value, again.tensors()[name]) for name, value in sketch.tensors().items())
    other = SPL(**SPARSE, seed=1).fit(np_toy.table_of(toy[0]), toy[0])
    assert not np.array_equal(sketch.latents.mean, other.latents.mean)


def test_round_trip_is_strict(sketch, toy):
    table = np_toy.table_of(toy[1])
    answers = Comparisons.of(toy[1], np.arange(12).reshape(3, 4))
    tensors, settings = sketch.tensors(), sketch.settings()
    loaded = SPLFitted.restore(tensors, settings)
    assert np.array_equal(loaded.adapt(table, answers).mean, sketch.adapt(table, answers).mean)
    assert isinstance(loaded.seen(), Latents) and len(loaded.seen().mean) == 200
    name = "net.decoder.first.kernel"
    broken = [
        ({k: v for k, v in tensors.items() if k != name}, "missing"),
        (tensors | {"net.extra": tensors[name]}, "not part"),
        (tensors | {name: tensors[name][:, 1:]}, "expected"),
    ]
    for changed, message in broken:
        with pytest.raises(UserError, match=message):
            SPLFitted.restore(changed, settings)
    with pytest.raises(UserError, match="'kind'"):
        VPLFitted.restore(tensors, settings)
    with pytest.raises(UserError, match="'hyper'"):
        SPLFitted.restore(tensors, {k: v for k, v in settings.items() if k != "hyper"})


def test_mistakes_are_named(sketch, toy):
    train, _ = toy
    table = np_toy.table_of(train)
    with pytest.raises(UserError, match="at least two"):
        VPL(**SPARSE).fit(table, train.select(train.user_index == 0))
    ties = dataclasses.replace(train, outcome=np.full(train.num_comparisons, 0.5, np.float32))
    with pytest.raises(UserError, match="ties"):
        VPL(**SPARSE).fit(table, ties)
    wide = ItemTable(train, np.zeros((train.num_items, 3), np.float32), {})
    with pytest.raises(UserError, match="reads width 1"):
        sketch.adapt(wide, Comparisons.of(train, np.zeros((1, 1), int)))
    assert "fit kind house" in sketch.policy_refusal


def test_many_answers_are_cut_and_weights_kept(toy, monkeypatch):
    train, _ = toy
    monkeypatch.setattr(variational_data, "MAX_ANSWERS", 5)
    weight = np.linspace(0.1, 1.0, train.num_comparisons).astype(np.float32)
    answers = variational_data.padded_answers(train, weight, 0)
    assert answers.weight.shape == (200, 5)
    for person in (0, 199):
        rows = [np.flatnonzero(train.chosen == item)[0] for item in answers.chosen[person]]
        assert np.all(train.user_index[rows] == person) and rows == sorted(rows)
        assert np.allclose(answers.weight[person], weight[rows])
