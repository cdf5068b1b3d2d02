"""`rewards.fit` → people: in memory and stored they are the same, and as the command makes them."""

import json

import numpy as np
import pytest

import rewards
from rewards.basis.store import load_reward_run
from rewards.people import records
from rlhf.apps import cli

NUM_ITEMS, WIDTH = 24, 4
SETTINGS = {"num_basis": 2, "dims": 4, "rounds": 4}


def table(num_people=30, pairs=16):
    """Everybody likes feature 0; half like feature 1, half dislike it."""
    rng = np.random.default_rng(0)
    items, rows = rng.normal(size=(NUM_ITEMS, WIDTH)), []
    for person in range(num_people):
        taste = np.array([1.5, 3.0 * (-1) ** person, 0, 0])
        for _ in range(pairs):
            a, b = rng.choice(NUM_ITEMS, 2, replace=False)
            if rng.random() > 1 / (1 + np.exp(-(items[a] - items[b]) @ taste)):
                a, b = b, a
            texts = {"prompt": "Which?", "chosen": f"item {a}", "rejected": f"item {b}"}
            features = {"chosen_features": items[a].tolist(), "rejected_features": items[b].tolist()}
            rows.append(texts | features | {"user_id": f"p{person:02}"})
    return rows


@pytest.fixture(scope="module")
def prefs():
    return rewards.read(table())


@pytest.fixture
def fitted(prefs):
    return rewards.fit(prefs.training, **SETTINGS)


def test_somebody_new_is_exactly_the_population_until_they_answer(fitted):
    ada = fitted.person("ada")
    np.testing.assert_array_equal(ada.mean, fitted.prior.mean)
    assert ada.answers == () and "ada" not in fitted.people
    question = ada.ask()
    ada.answer(question, "second")
    assert "ada" in fitted.people and len(ada.answers) == 1
    assert ada.answers[0].chosen == question.second and ada.answers[0].rejected == question.first
    # Liking the second text better means that w·(φ(first) − φ(second)) has gone down.
    assert (ada.mean - fitted.prior.mean) @ np.array(question.delta_features) < 0
    assert ada.sd.min() > 0 and ada.sd[1] < np.sqrt(fitted.prior.cov[1, 1]) and "1 answer" in ada.card()
    assert ada.ask().key != question.key


def test_questions_are_never_asked_twice_and_a_skip_teaches_nothing(fitted):
    bob, seen = fitted.person("bob"), set()
    for reply in ("first", "tie", "second"):
        question = bob.ask()
        assert question.key not in seen
        seen.add(question.key)
        bob.answer(question, reply)
    before, question = bob.mean, bob.ask()
    bob.skip(question)
    np.testing.assert_array_equal(bob.mean, before)
    assert bob.ask().key not in seen | {question.key}
    assert [answer.outcome for answer in bob.answers] == [1.0, 0.5, 1.0]


def test_stored_rewards_are_the_same_and_keep_what_people_say(fitted, tmp_path):
    ada = fitted.person("ada").answer(fitted.person("ada").ask(), "first")
    known = fitted.people[0]
    before = {name: (fitted.person(name).mean, fitted.person(name).sd) for name in ("ada", known)}
    directory = fitted.save(tmp_path / "run")
    opened = rewards.load(directory)
    assert opened.people == fitted.people and opened.questions == fitted.questions
    for name, (mean, sd) in before.items():
        np.testing.assert_array_equal(opened.person(name).mean, mean)
        np.testing.assert_allclose(opened.person(name).sd, sd, rtol=1e-6)
    ada.answer(ada.ask(), "tie")  # saved rewards write what is answered
    assert len(records.load(directory / "users", "ada", load_reward_run(directory)).answers) == 2
    assert len(opened.person("ada").answers) == 2
    with pytest.raises(rewards.UserError, match="holds rewards already"):
        rewards.fit(rewards.read(table(10)).training, **SETTINGS).save(directory)


def test_the_command_makes_the_same_rewards(prefs, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table()))
    config = {"seed": 0, "output_dir": str(tmp_path / "run"), "data": {"path": str(path)}}
    config |= {"encoder": {"kind": "precomputed"}, "fit": SETTINGS}
    (tmp_path / "rewards.yaml").write_text(json.dumps(config))
    assert cli.main(["rewards", "fit", str(tmp_path / "rewards.yaml"), "--json"]) == 0
    stored, fitted = rewards.load(tmp_path / "run"), rewards.fit(prefs, **SETTINGS)
    assert stored.basis.hash == fitted.basis.hash and stored.questions == fitted.questions
    assert stored.people == fitted.people and stored.calibration == fitted.calibration
    for name in stored.people[:3]:
        np.testing.assert_array_equal(stored.person(name).mean, fitted.person(name).mean)


def test_other_methods_by_name(prefs):
    pref = rewards.fit(prefs.training, method="pref", num_basis=2, dims=4)
    assert pref.method == "pref" and pref.num_basis == 2 and pref.person("ada").ask()
    vpl = rewards.fit(prefs.training, method="vpl", steps=2)
    with pytest.raises(rewards.UserError, match="method 'vpl' has no basis.*fit method='house'"):
        vpl.person("ada")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda prefs: rewards.fit(prefs, method="hose"), "did you mean 'house'"),
        (
            lambda prefs: rewards.fit(prefs, num_bases=2),
            "auto.num_bases: no such setting; did you mean 'num_basis'",
        ),
        (lambda prefs: rewards.fit(prefs, encoder="smollm2-135m"), "is no encoder.*rlhf.encoder"),
        (
            lambda prefs: rewards.fit([{"prompt": "a", "chosen": "b", "rejected": "c", "user_id": "u"}]),
            "texts without features or attributes.*encoder=rlhf.encoder",
        ),
    ],
)
def test_mistakes_are_named(prefs, wrong, complaint):
    with pytest.raises(rewards.UserError, match=complaint):
        wrong(prefs.training)


def test_wrong_answers_are_named(fitted):
    ada = fitted.person("ada")
    with pytest.raises(rewards.UserError, match="'yes': use 'first', 'second' or 'tie'"):
        ada.answer(ada.ask(), "yes")
    with pytest.raises(rewards.UserError, match="empty"):
        fitted.person(" ")
    with pytest.raises(rewards.UserError, match="fitted on precomputed"):
        fitted.score("Which?", ["item 1"])
