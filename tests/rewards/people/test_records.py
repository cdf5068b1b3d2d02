import concurrent.futures
import dataclasses
import json
import multiprocessing

import numpy as np
import pytest

from rewards import files, hashed
from rewards.basis import store, users
from rewards.errors import UserError
from rewards.people import records
from tests.rewards.basis.test_store import make_run


@pytest.fixture
def run(tmp_path):
    basis, prior, _ = make_run()
    store.save_reward_run(tmp_path / "run", basis, prior)
    return store.load_reward_run(tmp_path / "run")


def answers(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        records.make_answer("Which?", f"a{i}", f"b{i}", 0.5 if i % 4 == 3 else 1.0, rng.normal(size=3))
        for i in range(count)
    ]


def test_answers_append_and_the_posterior_follows_from_them(tmp_path, run):
    given = answers(7)
    records.append(tmp_path, run, "anna", given[:3])
    before = (tmp_path / "anna.json").read_text()
    records.append(tmp_path, run, "anna", given[3:])
    record = records.load(tmp_path, "anna", run)
    assert record.answers == tuple(given)
    assert json.loads(before)["answers"] == json.loads((tmp_path / "anna.json").read_text())["answers"][:3]
    delta = np.array([answer.delta_features for answer in given])
    expected = users.posterior(run.prior, delta, np.array([answer.outcome for answer in given]))
    np.testing.assert_allclose(record.posterior.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(records.recompute(run, record).precision, record.posterior.precision)
    written = json.loads((tmp_path / "anna.json").read_text())
    assert set(written) == {"user_id", "basis", "coef_mean", "coef_precision", "answers", "sha256"}
    assert written["basis"] == run.hash and np.shape(written["coef_precision"]) == (3, 3)


def test_answers_given_at_once_are_all_kept(tmp_path, run):
    """Four writers, each reading, changing and writing the same record ten times."""
    given = answers(40)

    def give(part):
        for answer in part:
            records.append(tmp_path, run, "anna", [answer])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(give, [given[start::4] for start in range(4)]))
    kept = records.load(tmp_path, "anna", run).answers
    assert sorted(answer.chosen for answer in kept) == sorted(answer.chosen for answer in given)


def give_rows(place, start):
    """One process's share of the work: rows `start` … `start` + 10 of a file of 20, wrapping round."""
    run = store.load_reward_run(place / "run")
    rows = answers(20)
    return records.learn(place, run, "anna", answers=[rows[(start + i) % 20] for i in range(10)]).added


def test_fifty_updates_with_overlapping_rows_at_once_count_every_answer_once(tmp_path, run):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        added = list(pool.map(give_rows, [tmp_path] * 50, [7 * n % 20 for n in range(50)]))
    record = records.load(tmp_path, "anna", run)
    assert sum(added) == len(record.answers) == 20
    assert sorted(answer.chosen for answer in record.answers) == sorted(a.chosen for a in answers(20))
    whole = records.append(tmp_path / "other", run, "anna", answers(20))
    np.testing.assert_allclose(record.posterior.mean, whole.posterior.mean, rtol=1e-4)


def said(chosen="a", rejected="b", outcome=1.0, time=None):
    return records.make_answer("Which?", chosen, rejected, outcome, np.ones(3), time)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ([said()], [said()], 1),  # read twice
        ([said()], [said(), said()], 2),  # a file that has grown by an honest repetition
        ([said(), said()], [said()], 2),
        ([said()], [said("b", "a", 0.0)], 1),  # the same preference, written the other way round
        ([said(outcome=0.5)], [said("b", "a", 0.5)], 1),
        ([said()], [said("b", "a")], 2),  # another opinion
        ([said()], [said(outcome=0.5)], 2),
        ([said(time="2024-01-01")], [said(time="2024-01-02")], 2),  # asked again later
        ([said(time="2024-01-01")], [said(time="2024-01-01")], 1),
        ([said(time="2024-01-01")], [said()], 1),  # no time of its own: nothing says that it is another
        ([said()], [said(time="2024-01-01")], 1),
        ([said(), said(time="1")], [said(time="2"), said(time="1")], 2),
        ([said(time="1")], [said(), said(time="1")], 2),
    ],
)
def test_the_same_answer_given_twice_is_one_answer(tmp_path, run, first, second, kept):
    records.append(tmp_path, run, "anna", first)
    learned = records.learn(tmp_path, run, "anna", answers=second)
    assert len(learned.record.answers) == kept and learned.added == kept - len(first)
    assert records.load(tmp_path, "anna", run).answers == learned.record.answers


def test_a_posterior_that_contradicts_its_answers_is_refused(tmp_path, run):
    path = tmp_path / "anna.json"
    records.append(tmp_path, run, "anna", answers(9))
    good = hashed.read_record(path)
    for change in (
        {"coef_mean": [value + 0.3 for value in good["coef_mean"]]},
        {"coef_precision": (1.2 * np.array(good["coef_precision"])).tolist()},
        {"answers": good["answers"][:-1]},
        {"answers": [answer | {"outcome": 1 - answer["outcome"]} for answer in good["answers"]]},
    ):
        hashed.write_record(path, good | change)
        for attempt in (
            lambda: records.load(tmp_path, "anna", run),
            lambda: records.append(tmp_path, run, "anna", answers(1)),
        ):
            with pytest.raises(UserError, match="do not follow from the answers.*forget"):
                attempt()
    # A record from before there were hashes and times of their own.
    files.write_json(path, good)
    assert len(records.append(tmp_path, run, "anna", answers(9)).answers) == 9


def test_somebody_new_is_the_prior_and_is_not_written(tmp_path, run):
    record = records.new_record(run, "anna")
    np.testing.assert_array_equal(record.posterior.mean, run.prior.mean)
    assert not records.exists(tmp_path, "anna")


def test_chat_prompts_survive(tmp_path, run):
    prompt = (("system", "Be brief."), ("user", "Which?"))
    records.append(tmp_path, run, "anna", [records.make_answer(prompt, "a", "b", 1, np.ones(3))])
    assert records.load(tmp_path, "anna", run).answers[0].prompt == prompt


@pytest.mark.parametrize(
    "user_id",
    ["../../etc/passwd", "/abs", "a/b", "..", ".", "CON", "ü Name", "x" * 500, "-rf", "A"],
)
def test_odd_ids_stay_in_the_folder(tmp_path, run, user_id):
    folder = tmp_path / "users"
    records.append(folder, run, user_id, answers(1))
    (path,) = folder.glob("[!.]*")  # beside the lock
    assert path.parent == folder and path.suffix == ".json" and len(path.name) < 120
    assert records.load(folder, user_id, run).user_id == user_id
    assert records.list_records(folder) == [(user_id, 1)]


@pytest.mark.parametrize("user_id", ["nul\0", "a\nb", "\x1b[2J", "\u202eada"])
def test_nobody_new_has_a_name_of_control_characters(tmp_path, run, user_id):
    with pytest.raises(UserError, match=r"U\+"):
        records.append(tmp_path / "users", run, user_id, answers(1))
    assert not list(tmp_path.glob("users/[!.]*"))
    older = dataclasses.replace(records.append(tmp_path / "other", run, "ada", answers(1)), user_id=user_id)
    records.write(tmp_path / "users", older)  # from before the rule
    assert records.append(tmp_path / "users", run, user_id, answers(2)[1:]).user_id == user_id
    (path,) = (tmp_path / "users").glob("[!.]*")
    assert path.parent == tmp_path / "users" and len(path.name) < 120
    assert records.list_records(tmp_path / "users") == [(user_id, 2)]


def test_no_two_ids_share_a_file():
    ids = ["a", "A", "a/b", "a_b", "a:b", "a b", "x" * 200, "x" * 201]
    assert len({records.file_name(user_id).lower() for user_id in ids}) == len(ids)


def test_forget_erases(tmp_path, run):
    folder = tmp_path / "users"
    records.append(folder, run, "anna", answers(2))
    records.append(folder, run, "ben", answers(1))
    records.forget(folder, "anna")
    assert records.list_records(folder) == [("ben", 1)]
    assert all('"a1"' not in path.read_text() for path in folder.iterdir())
    with pytest.raises(UserError, match="no record"):
        records.load(folder, "anna", run)
    with pytest.raises(UserError, match="no record"):
        records.forget(folder, "anna")


def test_record_of_another_basis_is_refused(tmp_path, run):
    basis, prior, _ = make_run(seed=1)
    store.save_reward_run(tmp_path / "other", basis, prior)
    other = store.load_reward_run(tmp_path / "other")
    records.append(tmp_path, run, "anna", answers(1))
    for attempt in (
        lambda: records.load(tmp_path, "anna", other),
        lambda: records.append(tmp_path, other, "anna", answers(1)),
    ):
        with pytest.raises(UserError, match="basis"):
            attempt()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("answers"), "'answers' is missing"),
        (lambda r: r.update(note=1), "'note' is unknown"),
        (lambda r: r.update(user_id="ben"), "belongs to user 'ben'"),
        (lambda r: r["answers"][1].pop("outcome"), r"answers\[1\].*'outcome' is missing"),
        (lambda r: r["answers"][1].update(outcome=2), r"answers\[1\].outcome is 2"),
        (lambda r: r["answers"][0].update(delta_features=[1, 2]), "the basis has 3"),
        (lambda r: r["answers"][0].update(delta_features=["x", 1, 2]), "finite numbers"),
        (lambda r: r.update(coef_mean=[1, 2]), "K × K"),
    ],
)
def test_damaged_record_is_named_in_one_line(tmp_path, run, change, message):
    records.append(tmp_path, run, "anna", answers(2))
    path = tmp_path / "anna.json"
    record = hashed.read_record(path)
    change(record)
    hashed.write_record(path, record)
    with pytest.raises(UserError, match=message) as caught:
        records.load(tmp_path, "anna", run)
    assert "anna.json" in str(caught.value) and "\n" not in str(caught.value)
