import dataclasses

import numpy as np
import pytest

from rewards import hashed
from rewards.basis import gauge, store, users
from rewards.basis.readout import Readout
from rewards.errors import UserError
from rewards.people import edits, records
from rewards.types import GroupPrior

INPUTS = ["length_words", "price", "jargon", "warmth"]


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    prior = GroupPrior(rng.normal(size=3), np.diag([1.0, 0.5, 2.0]))
    embeddings = rng.normal(size=(40, 4)).astype(np.float32)
    encoder = {"kind": "columns", "names": INPUTS}
    basis, prior, _ = gauge.canonicalise(
        rng.normal(size=(4, 3)), prior, embeddings, np.zeros(40, int), encoder=encoder
    )
    store.save_reward_run(tmp_path / "run", basis, prior, extra={"locked": ["taste 2"]})
    return store.load_reward_run(tmp_path / "run")


def words(run, text, name="ada"):
    return edits.from_words(run, records.new_record(run, name).posterior, text)


def test_a_number_moves_its_axis_there_and_answers_still_count(tmp_path, run):
    record = records.add(tmp_path, run, "ada", edits=[edits.from_axis(run, "taste 1=+0.9")])
    k = run.basis.gauge.names.index("taste 1")
    assert record.posterior.coef_mean[k] == pytest.approx(0.9, abs=0.02)
    sd = np.sqrt(np.linalg.inv(record.posterior.coef_precision)[k, k])
    assert sd == pytest.approx(0.1 * np.sqrt(run.prior.cov[k, k]), rel=0.02)
    delta = np.eye(3)[0] * 3
    answers = [records.make_answer("?", f"a{i}", f"b{i}", 1, delta) for i in range(5)]
    after = records.append(tmp_path, run, "ada", answers)
    assert after.posterior.coef_mean[0] > record.posterior.coef_mean[0] + 0.1
    assert records.load(tmp_path, "ada", run).edits == record.edits
    again = records.recompute(run, records.load(tmp_path, "ada", run))
    np.testing.assert_allclose(again.coef_mean, after.posterior.coef_mean, atol=1e-6)


def test_edit_is_bayes_rule_and_the_last_of_a_name_counts(run):
    direction, value, sd = np.array([0.5, -1.0, 0.3]), 0.7, 0.2
    first = edits.Edit("x", "", (1.0, 0.0, 0.0), 5.0, 0.1, "")
    second = edits.Edit("x", "", tuple(direction), value, sd, "")
    updated = edits.apply(run.prior, (first, second))
    cov, mean = run.prior.cov.astype(np.float64), run.prior.mean.astype(np.float64)
    gain = cov @ direction / (direction @ cov @ direction + sd**2)  # Kalman's form, not the code's
    np.testing.assert_allclose(updated.mean, mean + gain * (value - direction @ mean), atol=1e-5)
    np.testing.assert_allclose(updated.cov, cov - np.outer(gain, direction @ cov), atol=1e-5)
    assert edits.apply(run.prior, ()) is run.prior


def test_words_move_the_reward_of_what_they_name(tmp_path, run):
    made = words(run, "Shorter, a bit cheaper, please!")
    assert [edit.name for edit in made] == ["length_words", "price"]
    record = records.add(tmp_path, run, "ada", edits=made)
    items = np.eye(4, dtype=np.float32)
    slope = Readout.of(run.basis).features(np.concatenate([items, np.zeros((1, 4), np.float32)]))
    change = slope[:4] - slope[4]  # what one unit more of each number does to φ
    before, after = change @ run.prior.mean, change @ record.posterior.coef_mean
    assert after[0] < before[0] - 0.1 and after[1] < before[1] - 0.05
    more, less = words(run, "more warmth")[0], words(run, "less warmth")[0]
    assert more.value > less.value and more.name == less.name == "warmth"
    assert words(run, "simpler")[0].name == "jargon"
    assert words(run, "more taste 1")[0].name == "taste 1"
    much, plain = words(run, "much longer")[0], words(run, "longer")[0]
    now = np.array(plain.direction) @ run.prior.mean
    assert much.value - now == pytest.approx(2 * (plain.value - now), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bluer", "'bluer': names nothing of this run; write 'more' or 'less' of one of aggregate, taste 1"),
        ("not longer", "without 'not'"),
        ("more taste", "may mean"),
        ("please", "nothing to change"),
        ("", "nothing to change"),
        ("less taste 2", "'taste 2' is locked"),
    ],
)
def test_words_that_cannot_be_read_are_refused(run, text, message):
    with pytest.raises(UserError, match=message) as caught:
        words(run, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taste 1", "write NAME=NUMBER"),
        ("tast 1=1", "did you mean 'taste 1'"),
        ("taste 1=lots", "not a number from"),
        ("taste 1=nan", "not a number from"),
        ("taste 1=99", "not a number from"),
        ("taste 2=0.1", "'taste 2' is locked"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(run, text, message):
    with pytest.raises(UserError, match=message):
        edits.from_axis(run, text)


def test_a_comparative_that_two_names_answer_to_is_not_guessed(tmp_path, run):
    """ "Cheaper" is more of `cheapness`, not less of `fixed price`, although both speak of price."""
    encoder = {"kind": "columns", "names": ["cheapness", "fixed price", "warmth", "jargon"]}
    basis = dataclasses.replace(run.basis, encoder=encoder)
    both = dataclasses.replace(run, basis=basis)
    with pytest.raises(UserError, match="may mean 'cheapness', 'fixed price'"):
        words(both, "cheaper")
    encoder = {"kind": "columns", "names": ["cheapness", "length", "warmth", "jargon"]}
    alone = dataclasses.replace(run, basis=dataclasses.replace(run.basis, encoder=encoder))
    [edit] = words(alone, "cheaper")
    assert edit.name == "cheapness" and edit.value > np.array(edit.direction) @ run.prior.mean


def test_words_about_a_column_leave_a_locked_axis_alone(run):
    k = run.basis.gauge.names.index("taste 2")
    assert words(run, "longer")[0].direction[k] == 0
    slope = edits.named_directions(run)["length_words"]
    assert abs(slope[k]) > 1e-3


def test_damaged_edit_is_named(tmp_path, run):
    records.add(tmp_path, run, "ada", edits=[edits.from_axis(run, "taste 1=1")], skipped=["x"])
    path = tmp_path / "ada.json"
    good = hashed.read_record(path)
    assert good["skipped"] == ["x"]
    for change, message in (
        ({"edits": [good["edits"][0] | {"sd": 0}]}, r"edits\[0\]"),
        ({"edits": [good["edits"][0] | {"direction": [1.0]}]}, "the basis has 3"),
        ({"skipped": [1]}, "skipped"),
    ):
        hashed.write_record(path, good | change)
        with pytest.raises(UserError, match=message):
            records.load(tmp_path, "ada", run)


def test_an_empty_record_with_an_edit_follows_from_it_alone(run):
    record = dataclasses.replace(records.new_record(run, "x"), edits=(edits.from_axis(run, "taste 1=0.5"),))
    expected = users.posterior(edits.apply(run.prior, record.edits), np.zeros((0, 3)), np.zeros(0))
    np.testing.assert_array_equal(records.recompute(run, record).coef_mean, expected.coef_mean)
