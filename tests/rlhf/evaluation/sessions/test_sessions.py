"""People over sessions: claims follow from answers, move with a changed taste, and leave records alone."""

import json
import shutil

import numpy as np
import pytest

import rewards
import rlhf
from rewards.errors import UserError
from rewards.people import records
from rlhf.evaluation.sessions import __main__ as command
from rlhf.evaluation.sessions import run as sessions
from tests.rlhf import tiny
from tests.rlhf.api.world import FIT, table


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("sessions")
    encoder = rlhf.encoder(tiny.write_model(root / "model"))
    rewards.fit(rewards.read(table()).training, encoder=encoder, **FIT).save(root / "rewards")
    shutil.copytree(root / "rewards", root / "empty")
    return root / "rewards"


@pytest.fixture(scope="module")
def fitted(place):
    return rewards.load(place)


def strong(fitted, *signs):
    """Somebody far from the average on the last axis; one sign a session."""
    axis, sd = np.eye(fitted.num_basis)[-1], np.asarray(fitted.prior.sd)
    return np.array([np.asarray(fitted.prior.mean) + 6 * sign * sd * axis for sign in signs])


def test_a_strong_taste_is_claimed_on_its_side_with_the_answers_that_say_so(fitted):
    somebody = sessions.Somebody("one", strong(fitted, 1, 1, 1))
    result = sessions.run(fitted, [somebody], 3, 8, seed=0)
    [person] = result["persons"]
    [claim] = [one for one in person["claims"] if one["axis"] == fitted.axes[-1]]
    assert claim["side"] == "above" and claim["answers_for"] > claim["answers_against"]
    assert claim["strongest"][0]["shift"] >= claim["strongest"][-1]["shift"] > 0
    assert result["claims_without_evidence"] == 0
    first, *_, last = result["groups"]["everybody"]
    assert last["distance"] < first["distance"] and last["true_claims"] >= 1 and last["answers"] == 24


def test_evidence_is_what_leaving_the_answer_out_changes(fitted):
    record = records.new_record(fitted.basis, "one")
    rng = np.random.default_rng(0)
    record = sessions._session(fitted, sessions.Somebody("one", strong(fitted, 1)), 0, record, 12, rng)
    axis = fitted.num_basis - 1
    [claim] = sessions.evidence(fitted, record, {axis: 1}, 4)
    shifts = []
    for place in range(12):
        rest = record.answers[:place] + record.answers[place + 1 :]
        without = records.with_events(fitted.basis, records.new_record(fitted.basis, "one"), answers=rest)
        shifts.append(float(record.posterior.mean[axis] - without.posterior.mean[axis]))
    assert [one["shift"] for one in claim["strongest"]] == pytest.approx(sorted(shifts)[::-1][:3], abs=1e-3)
    assert claim["strongest"][0]["session"] == int(np.argmax(shifts)) // 4 + 1


def test_a_taste_that_changes_drifts_and_a_claim_is_withdrawn(fitted):
    same = sessions.Somebody("same", strong(fitted, *[1] * 6), group="stays")
    other = sessions.Somebody("other", strong(fitted, 1, 1, -1, -1, -1, -1), group="changes")
    result = sessions.run(fitted, [same, other], 6, 8, seed=1)
    stays, changes = result["groups"]["stays"], result["groups"]["changes"]
    assert changes[2]["distance"] > 1.5 * stays[2]["distance"]
    assert changes[-1]["distance"] < changes[2]["distance"]
    assert sum(row["withdrawn"] for row in changes) > sum(row["withdrawn"] for row in stays)


def test_recorded_answers_come_again_and_the_record_stays(place, tmp_path):
    person = rewards.load(place).person("anna")
    for _ in range(7):
        person.answer(person.ask(), "first")
    before = (place / "users" / "anna.json").read_bytes()
    command.main([str(place), "--replay", "--answers", "3", "--output", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "sessions.json").read_text())
    [found] = [one for one in result["persons"] if one["name"] == "anna"]
    assert [row["answers"] for row in found["sessions"]] == [3, 6, 7]
    assert (place / "users" / "anna.json").read_bytes() == before
    mean = result["groups"]["everybody"][0]["moved"]
    assert f"{mean:.3g}" in (tmp_path / "out" / "sessions.md").read_text()


def test_mistakes_are_named(place, tmp_path, capsys):
    for words in (["--sessions", "0"], ["--policy", str(tmp_path / "none")]):
        with pytest.raises(SystemExit) as ended:
            command.main([str(place), *words, "--output", str(tmp_path / "x")])
        assert ended.value.code == 2 and capsys.readouterr().err.strip().count("\n") == 0
    shutil.rmtree(place.parent / "empty" / "users")
    with pytest.raises(UserError, match="nobody with answers"):
        sessions.replayed(rewards.load(place.parent / "empty"))
