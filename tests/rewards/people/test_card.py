"""A coefficient is the sum of what people said, and the card says which of it counts most."""

import types

import numpy as np
import pytest

from rewards.basis import users
from rewards.basis.belief import Belief
from rewards.people import card, edits
from rewards.people.answers import Answer, UserRecord
from rewards.people.edits import Edit

MEAN, COV = np.array([0.3, -0.2], np.float32), np.array([[1.0, 0.4], [0.4, 2.0]], np.float32)


def make(lapse=0.0, statements=()):
    rng = np.random.default_rng(0)
    run = types.SimpleNamespace(prior=Belief.from_cov(MEAN, COV), lapse=lapse)
    delta = rng.normal(size=(6, 2)).astype(np.float32)
    delta[3] *= 0.01  # a question about nothing
    outcome = np.array([1, 1, 0.5, 1, 0, 1], np.float32)
    prior = edits.apply(run.prior, tuple(statements))
    posterior = users.posterior(prior, delta, outcome, lapse=lapse)
    answers = tuple(
        Answer(f"q{i}", f"yes {i}", f"no {i}", float(y), tuple(map(float, d)), "2026-01-01T00:00:00Z")
        for i, (d, y) in enumerate(zip(delta, outcome, strict=True))
    )
    return run, UserRecord("ada", "basis", posterior, answers, tuple(statements))


def statement(value, name="taste 1"):
    return Edit(name, f"{name} {value}", (1.0, 0.0), value, 0.5, "2026-01-02T00:00:00Z")


@pytest.mark.parametrize("lapse", [0.0, 0.1])
@pytest.mark.parametrize("statements", [(), (statement(1.5),)])
def test_contributions_add_up_to_the_distance_from_the_population(lapse, statements):
    run, record = make(lapse, statements)
    found = card.contributions(run, record)
    assert found.answers.shape == (6, 2) and found.edits.shape == (len(statements), 2)
    assert np.abs(found.rest).max() < 1e-3 < np.abs(record.posterior.mean - MEAN).max()


def test_one_answer_by_hand():
    """m − μ = Σ v (1 − σ(v·m)) for a single answer that preferred the first text."""
    run, whole = make()
    one = whole.answers[0]
    posterior = users.posterior(run.prior, np.array([one.delta_features]), np.array([1.0]))
    found = card.contributions(run, UserRecord("ada", "basis", posterior, (one,)))
    v, m = np.array(one.delta_features), posterior.mean
    by_hand = COV @ v * (1 - 1 / (1 + np.exp(-v @ m)))
    np.testing.assert_allclose(found.answers[0], by_hand, rtol=1e-4)
    np.testing.assert_allclose(found.answers[0], m - MEAN, atol=1e-4)


def test_the_reasons_are_the_answers_that_move_it_most():
    run, record = make(statements=(statement(3.0), statement(2.5)))
    rows = card.reasons(run, record, 0, most=7)
    moves = [abs(row["moves"]) for row in rows]
    assert moves == sorted(moves, reverse=True) and len(rows) == 7
    assert [row["text"] for row in rows if row["kind"] == "statement"] == ["taste 1 2.5"], "the latest counts"
    least = [row for row in rows if row["kind"] == "answer"][-1]
    assert least["prompt"] == "q3"
    against = next(row for row in rows if row.get("prompt") == "q4")
    assert (against["preferred"], against["other"]) == ("no 4", "yes 4")


def test_provenance_names_every_answer_and_changes_with_any_of_them():
    _, record = make(statements=(statement(1.0),))
    found = card.provenance(record)
    assert found["answers"] == [answer.key for answer in record.answers] and found["edits"] == ["taste 1"]
    other = card.provenance(UserRecord("ada", "basis", record.posterior, record.answers[:-1], record.edits))
    assert other["record"] != found["record"]
