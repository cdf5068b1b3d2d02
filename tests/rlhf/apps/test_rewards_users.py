"""Reward runs and user records through the command line, on people whose tastes are known."""

import json

import numpy as np
import pytest
import yaml

from rewards.basis import store, users
from rewards.people import records
from rlhf.apps import cli
from rlhf.apps import users as user_jobs
from rlhf.run.directory import read_result

NUM_ITEMS, WIDTH = 24, 4


def features():
    return np.random.default_rng(0).normal(size=(NUM_ITEMS, WIDTH))


def answers_of(user_id, taste, count, rng):
    rows, items = [], features()
    for _ in range(count):
        a, b = rng.choice(NUM_ITEMS, 2, replace=False)
        if rng.random() > 1 / (1 + np.exp(-(items[a] - items[b]) @ taste)):
            a, b = b, a
        rows.append(
            {
                "prompt": "Which?",
                "chosen": f"item {a}",
                "rejected": f"item {b}",
                "user_id": user_id,
                "chosen_features": items[a].tolist(),
                "rejected_features": items[b].tolist(),
            }
        )
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Sixty people: all like feature 0; half like feature 1, half dislike it."""
    folder, rng = tmp_path_factory.mktemp("rewards"), np.random.default_rng(1)
    rows = [
        row
        for person in range(60)
        for row in answers_of(f"p{person:02}", np.array([1.5, 3.0 * (-1) ** person, 0, 0]), 24, rng)
    ]
    write_rows(folder / "pairs.jsonl", rows)
    config = {
        "seed": 0,
        "output_dir": str(folder / "run"),
        "data": {"path": str(folder / "pairs.jsonl"), "last_choices": 8},
        "encoder": {"kind": "precomputed"},
        "fit": {"num_basis": 2, "dims": 4, "rounds": 8},
        "evaluation": {"counts": [0, 5, 10], "seeds": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["rewards", "fit", str(folder / "config.yaml")]) == 0
    return folder


def result_of(capsys, *argv):
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_fit_writes_a_whole_run_and_the_same_command_only_reads_it(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run / "run").glob("*.safetensors")}
    result = result_of(capsys, "rewards", "fit", run / "config.yaml")
    assert result["training_people"] == 48 and result["held_out_people"] == 12 and result["num_basis"] == 2
    assert result["training_accuracy"] > 0.8
    assert before and before == {
        path: path.stat().st_mtime_ns for path in (run / "run").glob("*.safetensors")
    }
    assert result == read_result(run / "run")
    assert len(list((run / "run" / "users").glob("*.json"))) == 48
    assert len((run / "run" / "metrics.jsonl").read_text().splitlines()) == 8


def test_training_records_follow_from_their_answers(run):
    loaded = store.load_reward_run(run / "run")
    for user_id, count in records.list_records(run / "run" / "users")[:5]:
        record = records.load(run / "run" / "users", user_id, loaded)
        assert count == 24
        np.testing.assert_allclose(
            records.recompute(loaded, record).mean, record.posterior.mean, rtol=1e-3, atol=1e-3
        )


def test_another_configuration_in_the_same_place_is_refused(run, capsys):
    assert cli.main(["rewards", "fit", str(run / "config.yaml"), "fit.rounds=9"]) == 2
    assert "fit.rounds is 8 there, 9 here" in capsys.readouterr().err


def test_evaluation_sees_taste_and_its_absence(run, capsys):
    result = result_of(capsys, "rewards", "evaluate", run / "config.yaml")["evaluation"]
    accuracy = {n: value["mean"] for n, value in result["accuracy"].items()}
    # Opposite tastes: without answers only feature 0 helps; the swap must cost what the answers brought.
    assert accuracy["10"] > accuracy["0"] + 0.1
    assert accuracy["10"] > result["pooled_accuracy"]["mean"] + 0.1
    assert result["swap"]["answers"] == 10 and result["swap"]["difference"]["low"] > 0.05
    assert result["people"] == 12
    stored = json.loads((run / "run" / "metrics.json").read_text())
    assert stored["evaluation"] == result and stored["training_people"] == 48


def test_update_equals_the_posterior_of_the_file(run, capsys):
    rows = answers_of("ada", np.array([1.5, -3.0, 0, 0]), 12, np.random.default_rng(5))
    path = write_rows(run / "ada.jsonl", rows)
    result = result_of(capsys, "users", "update", "ada", "--rewards", run / "run", "--answers", path)
    loaded = store.load_reward_run(run / "run")
    raw = np.array([row["chosen_features"] for row in rows]) - [row["rejected_features"] for row in rows]
    gauge = loaded.basis.gauge
    matrix = np.diag(gauge.signs) @ gauge.rotation @ gauge.whitening * gauge.scale
    expected = users.posterior(loaded.prior, raw @ loaded.basis.head @ matrix.T, np.ones(len(rows)))
    np.testing.assert_allclose(result["coef_mean"], expected.mean, rtol=1e-3, atol=1e-4)
    assert result["num_answers"] == result["added"] == 12
    shown = result_of(capsys, "users", "show", "ada", "--rewards", run / "run")
    assert shown["coef_mean"] == result["coef_mean"]
    assert {"user_id": "ada", "num_answers": 12} in result_of(
        capsys, "users", "list", "--rewards", run / "run"
    )["users"]


def test_reading_a_file_again_counts_no_answer_twice(run, capsys):
    """Not the whole file, not a part that was asked before, and a repeated question as often as it was answered."""
    rows = answers_of("rae", np.array([1.5, -3.0, 0, 0]), 6, np.random.default_rng(6))
    rows += [rows[0], rows[1] | {"outcome": 0.5}]
    path = write_rows(run / "rae.jsonl", rows)
    common = ("rae", "--rewards", run / "run", "--answers", path)
    assert result_of(capsys, "users", "ask", *common, "--max-questions", 3)["num_answers"] == 3
    first = result_of(capsys, "users", "update", *common)
    assert (first["added"], first["known"], first["num_answers"]) == (5, 3, 8)
    again = result_of(capsys, "users", "update", *common)
    assert (again["added"], again["known"], again["coef_mean"]) == (0, 8, first["coef_mean"])
    assert result_of(capsys, "users", "ask", *common)["asked"] == 0
    write_rows(path, [*rows, rows[0]])
    assert result_of(capsys, "users", "update", *common)["added"] == 1


def test_ask_from_a_file_learns_the_side_of_the_person(run, capsys):
    scores, prior = {}, store.load_reward_run(run / "run").prior
    for name, taste in {"plus": 3.0, "minus": -3.0}.items():
        rows = answers_of(name, np.array([1.5, taste, 0, 0]), 40, np.random.default_rng(6))
        path = write_rows(run / f"{name}.jsonl", rows)
        result = result_of(capsys, "users", "ask", name, "--rewards", run / "run", "--answers", path)
        assert result["asked"] == result["num_answers"] == 10
        scores[name] = (result["coef_mean"] - prior.mean) @ np.linalg.inv(np.linalg.cholesky(prior.cov)).T
    assert np.sign(scores["plus"][1]) != np.sign(scores["minus"][1])
    assert np.linalg.norm(scores["plus"] - scores["minus"]) > 1


def test_ask_in_the_terminal_stores_every_answer_and_goes_on(run):
    loaded, said = store.load_reward_run(run / "run"), []
    replies = iter(["x", "1", "t", "s", "q"])
    result = user_jobs.ask_terminal(
        str(run / "run"), "eve", 10, read=lambda _: next(replies), say=said.append
    )
    record = records.load(run / "run" / "users", "eve", loaded)
    assert result["num_answers"] == len(record.answers) == 2
    assert [answer.outcome for answer in record.answers] == [1.0, 0.5]
    text = "\n".join(said)
    assert "'x' is none of 1, 2, t, s, q." in text and "Learned: " in text and "goes on from here" in text
    shown_first = next(line for line in said if line.startswith("  [1] ")).removeprefix("  [1] ")
    assert record.answers[0].chosen == shown_first
    items, answer = features(), record.answers[0]
    a, b = (int(text.split()[1]) for text in (answer.chosen, answer.rejected))
    gauge = loaded.basis.gauge
    matrix = np.diag(gauge.signs) @ gauge.rotation @ gauge.whitening * gauge.scale
    np.testing.assert_allclose(
        answer.delta_features, (items[a] - items[b]) @ loaded.basis.head @ matrix.T, atol=1e-4
    )
    user_jobs.ask_terminal(str(run / "run"), "eve", 1, read=lambda _: "2", say=said.append)
    record = records.load(run / "run" / "users", "eve", loaded)
    asked = {frozenset((answer.chosen, answer.rejected)) for answer in record.answers}
    assert len(record.answers) == len(asked) == 3  # nothing is asked twice


def test_closing_the_terminal_stops_quietly(run):
    def closed(_):
        raise EOFError

    result = user_jobs.ask_terminal(str(run / "run"), "nobody", 3, read=closed, say=lambda _: None)
    assert result["num_answers"] == 0
    np.testing.assert_allclose(result["coef_mean"], store.load_reward_run(run / "run").prior.mean, atol=1e-5)
    assert not records.exists(run / "run" / "users", "nobody")


def test_forget_erases(run, capsys):
    write_rows(run / "tmp.jsonl", answers_of("tmp", np.ones(4), 3, np.random.default_rng(7)))
    result_of(capsys, "users", "update", "tmp", "--rewards", run / "run", "--answers", run / "tmp.jsonl")
    assert result_of(capsys, "users", "forget", "tmp", "--rewards", run / "run")["forgotten"]
    assert cli.main(["users", "show", "tmp", "--rewards", str(run / "run")]) == 2
    assert "no record of user 'tmp'" in capsys.readouterr().err
    assert not any("tmp" in path.read_text() for path in (run / "run" / "users").iterdir())


def test_a_skipped_question_is_not_asked_again(run):
    said = []
    for _ in range(2):
        replies = iter(["s", "s", "1", "q"])
        user_jobs.ask_terminal(
            str(run / "run"), "skipper", 10, read=lambda _, replies=replies: next(replies), say=said.append
        )
    record = records.load(run / "run" / "users", "skipper", store.load_reward_run(run / "run"))
    assert len(record.skipped) == 4 and len(record.answers) == 2
    shown = [frozenset(said[i : i + 2]) for i, line in enumerate(said) if line.startswith("  [1] ")]
    texts = [frozenset(line[6:] for line in pair) for pair in shown]
    assert (
        len(texts) == 8 and len(set(texts[:3] + texts[4:7])) == 6
    )  # the fourth was only stopped at, so it came again
    assert any("than the average person" in line or "as the average person" in line for line in said)


def test_asking_stops_when_an_answer_would_add_little(run, capsys):
    said = []
    result = user_jobs.ask_terminal(
        str(run / "run"), "stop", 10, user_jobs.Asking(stop_below=0.5), read=lambda _: "1", say=said.append
    )
    assert result["num_answers"] == 0 and "below 0.5" in result["stopped"] and "below 0.5" in said[-1]
    rows = answers_of("rules", np.array([1.5, 3.0, 0, 0]), 30, np.random.default_rng(8))
    path = write_rows(run / "rules.jsonl", rows)
    common = ("users", "ask", "rules", "--rewards", run / "run", "--answers", path)
    result = result_of(
        capsys, *common, "--rule", "d-optimal", "--stop-below", "0.004", "--max-questions", "30"
    )
    assert 0 < result["asked"] < 30 and "below 0.004" in result["stopped"]
    assert cli.main([*map(str, common), "--rule", "d-optimum"]) == 2
    assert "did you mean 'd-optimal'" in capsys.readouterr().err


def test_a_questionnaire_is_filled_in_elsewhere(run, capsys):
    file = run / "questions.jsonl"
    batch = ("users", "ask", "ben", "--rewards", run / "run", "--batch", "6", "--output", file)
    result = result_of(capsys, *batch)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == result["questions"] and len(rows) == 6
    assert not records.exists(run / "run" / "users", "ben")
    assert cli.main([*map(str, batch)]) == 2 and "exists already" in capsys.readouterr().err
    taste, items = np.array([1.5, -3.0, 0, 0]), features()
    for row in rows[:4]:
        first, second = (items[int(row[side].split()[1])] @ taste for side in ("first", "second"))
        row["preferred"] = "1" if first > second else "2"
    rows[4]["preferred"] = "skip"
    write_rows(file, rows)
    update = ("users", "update", "ben", "--rewards", run / "run", "--answers", file)
    result = result_of(capsys, *update)
    assert (result["added"], result["skipped"], result["empty"]) == (4, 1, 1)
    loaded = store.load_reward_run(run / "run")
    gauge = loaded.basis.gauge
    matrix = np.diag(gauge.signs) @ gauge.rotation @ gauge.whitening * gauge.scale
    for answer in records.load(run / "run" / "users", "ben", loaded).answers:
        chosen, rejected = (items[int(text.split()[1])] for text in (answer.chosen, answer.rejected))
        assert (chosen - rejected) @ taste > 0
        np.testing.assert_allclose(
            answer.delta_features, (chosen - rejected) @ loaded.basis.head @ matrix.T, atol=1e-4
        )
    again = result_of(capsys, *update)
    assert again["added"] == 0 and again["known"] == 4 and again["coef_mean"] == result["coef_mean"]
    rest = result_of(capsys, "users", "ask", "ben", "--rewards", run / "run", "--batch", "3")["questions"]
    asked = {frozenset((row["first"], row["second"])) for row in rows[:5]}
    assert asked.isdisjoint({frozenset((row["first"], row["second"])) for row in rest})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(preferred="3"), "row 2: preferred is '3'"),
        (lambda rows: rows[1].update(first="item 99"), "row 2: not a question of this reward run"),
        (lambda rows: rows[1].update(user_id="eva"), "row 2: user_id is 'eva'"),
        (lambda rows: rows[1].update(note=""), "row 2: must hold"),
        (lambda rows: rows.append(rows[0]), "row 3: the same question twice"),
    ],
)
def test_a_damaged_questionnaire_is_named_and_teaches_nothing(run, tmp_path, capsys, change, message):
    result = result_of(capsys, "users", "ask", "dan", "--rewards", run / "run", "--batch", "2")
    rows = [row | {"preferred": "1"} for row in result["questions"]]
    change(rows)
    path = write_rows(tmp_path / "filled.jsonl", rows)
    assert cli.main(["users", "update", "dan", "--rewards", str(run / "run"), "--answers", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not records.exists(run / "run" / "users", "dan")


def test_edit_moves_the_axis_and_is_kept(run, capsys):
    edit = ("users", "edit", "kim", "--rewards", run / "run")
    result = result_of(capsys, *edit, "--axis", "taste 1=+1.0")
    assert result["axes"][1]["mean"] == pytest.approx(1.0, abs=0.05) and result["num_edits"] == 1
    result = result_of(capsys, *edit, "--text", "less taste 1")
    assert result["axes"][1]["mean"] < 0.8 and result["edited"][0]["name"] == "taste 1"
    shown = result_of(capsys, "users", "show", "kim", "--rewards", run / "run")
    assert shown["coef_mean"] == result["coef_mean"] and shown["shared_account"] is None
    for arguments, message in (
        (["--text", "shorter, please"], "names nothing of this run"),
        (["--axis", "taste 7=1"], "no axis 'taste 7'"),
        ([], "give --axis"),
    ):
        assert cli.main([*map(str, edit), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert result_of(capsys, "users", "show", "kim", "--rewards", run / "run")["num_edits"] == 2


def test_show_says_when_two_people_seem_to_answer(run, capsys):
    rng, rows = np.random.default_rng(9), []
    for sitting in range(12):
        taste = np.array([1.5, 6.0 * (-1) ** (sitting % 2), 0, 0])
        for row in answers_of("family", taste, 8, rng):
            rows.append(row | {"timestamp": f"2025-01-{sitting + 1:02}T10:00:00+00:00"})
    path = write_rows(run / "family.jsonl", rows)
    result_of(capsys, "users", "update", "family", "--rewards", run / "run", "--answers", path)
    shared = result_of(capsys, "users", "show", "family", "--rewards", run / "run")["shared_account"]
    assert shared["flagged"] and np.sign(shared["coef"][0][1]) != np.sign(shared["coef"][1][1])
    assert cli.main(["users", "show", "family", "--rewards", str(run / "run")]) == 0
    assert "Two people may share this account" in capsys.readouterr().out


def test_error_bars_are_calibrated_and_say_so(run, capsys):
    """Shown deviations are Laplace's times the root of the stored scale, by number of answers."""
    stored = json.loads((run / "run" / "calibration.json").read_text())
    assert stored["basis"] == store.load_reward_run(run / "run").hash
    assert stored["counts"] == [1, 2, 5, 10, 20] and min(stored["margin"]) > 0.9
    shown = result_of(capsys, "users", "show", "p00", "--rewards", run / "run")
    record = json.loads((run / "run" / "users" / "p00.json").read_text())
    laplace = np.sqrt(np.diag(np.linalg.inv(record["coef_precision"])))
    scale = np.interp(len(record["answers"]), stored["counts"], stored["margin"])
    np.testing.assert_allclose([axis["sd"] for axis in shown["axes"]], laplace * np.sqrt(scale), rtol=1e-4)
    assert shown["coverage"] == 0.95


def test_a_fit_by_kind_of_answer(run, tmp_path, capsys):
    """Questions put four times, a third of them answered by coins: the mixture says so, and that is the lapse.

    Four: put two or three times, a question answered by a coin and one answered with slips look alike.
    """
    rng, rows = np.random.default_rng(5), []
    for line in (run / "pairs.jsonl").read_text().splitlines()[::2]:
        coin = rng.random() < 1 / 3
        for _ in range(4):
            row = json.loads(line)
            if coin and rng.random() < 1 / 2:
                for a, b in (("chosen", "rejected"), ("chosen_features", "rejected_features")):
                    row[a], row[b] = row[b], row[a]
            rows.append(row)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["path"] = str(write_rows(tmp_path / "pairs.jsonl", rows))
    config |= {"output_dir": str(tmp_path / "run")}
    config["fit"] |= {"annotation": "mixture"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    kinds = result_of(capsys, "rewards", "fit", tmp_path / "config.yaml")["annotation"]
    assert abs(kinds["genuine"] - 2 / 3) < 0.12
    lapse = store.load_reward_run(tmp_path / "run").lapse
    np.testing.assert_allclose(lapse, 1 - kinds["genuine"], rtol=1e-6)


def test_the_card_says_what_is_held_and_where_it_comes_from(run, capsys, tmp_path):
    rows = write_rows(
        tmp_path / "holly.jsonl", answers_of("holly", np.array([1.5, 3, 0, 0]), 6, np.random.default_rng(3))
    )
    result_of(capsys, "users", "update", "holly", "--rewards", run / "run", "--answers", rows)
    path = tmp_path / "card.json"
    card = result_of(capsys, "users", "card", "holly", "--rewards", run / "run", "--output", path)
    assert len(card["provenance"]["answers"]) == card["num_answers"] == 6
    assert [axis["used"] for axis in card["axes"]] == card["coef_railed"]
    assert all(len(axis["because"]) == 3 for axis in card["axes"])
    exported = json.loads(path.read_text())
    assert len(exported["record"]["answers"]) == 6 and exported["provenance"] == card["provenance"]
    assert cli.main(["users", "card", "holly", "--rewards", str(run / "run"), "--output", str(path)]) == 2
    capsys.readouterr()
    assert cli.main(["users", "card", "holly", "--rewards", str(run / "run")]) == 0
    said = capsys.readouterr().out
    assert "rather than" in said and "chorus users forget holly" in said
    assert cli.main(["users", "forget", "holly", "--rewards", str(run / "run")]) == 0
    assert cli.main(["users", "card", "holly", "--rewards", str(run / "run")]) == 2
