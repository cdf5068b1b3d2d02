"""`chorus rewards score` on runs of several encoders, through the command line."""

import gzip
import json

import numpy as np
import pytest

from rewards import methods as models
from rewards.basis import gauge, store
from rewards.basis.belief import Belief
from rewards.basis.readout import Readout
from rewards.methods.base import ItemTable
from rewards.methods.columns import Columns
from rewards.methods.store import save_model
from rewards.people import records
from rlhf.apps import cli
from rlhf.phi.columns import table
from rlhf.phi.columns.config import ColumnConfig
from tests.rlhf.phi.columns.rows import preferences, write_rows

NUM_ITEMS, WIDTH = 20, 3


def items():
    return np.random.default_rng(0).normal(size=(NUM_ITEMS, WIDTH))


def stored_run(folder, width, encoder):
    """A run of two outputs over embeddings of `width`, in the canonical gauge, made without a fit."""
    rng = np.random.default_rng(1)
    prior = Belief.from_cov(np.array([1.5, -0.4]), np.array([[0.5, 0.1], [0.1, 0.7]]))
    reference = rng.normal(size=(NUM_ITEMS, width))
    basis, prior, _ = gauge.canonicalise(
        rng.normal(size=(width, 2)), prior, reference, np.zeros(NUM_ITEMS, np.int32), encoder=encoder
    )
    store.save_reward_run(folder / "run", basis, prior, extra={"lapse": 0.0})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over features of one's own, and a person who has answered."""
    folder = stored_run(tmp_path_factory.mktemp("score"), WIDTH, {"kind": "precomputed"})
    stored = store.load_reward_run(folder / "run")
    answer = records.make_answer("Which?", "a", "b", 1.0, np.array([0.3, -1.1]))
    records.append(folder / "run" / "users", stored, "ada", [answer])
    return folder


@pytest.fixture(scope="module")
def column_run(tmp_path_factory):
    """A run over a function and a gate, without language model."""
    folder = tmp_path_factory.mktemp("columns")
    code = (
        "def value(completions, **c):\n    return [float(t.split()[0]) for t in completions]\n"
        "def safe(completions, **c):\n    return [float('unsafe' not in t) for t in completions]\n"
        "def rare(completions, **c):\n    return [1.0 if 'rare' in t else None for t in completions]\n"
    )
    (folder / "mine.py").write_text(code)
    configs = (
        ColumnConfig(name="value", kind="function", function=f"{folder}/mine.py:value"),
        ColumnConfig(name="safe", kind="function", function=f"{folder}/mine.py:safe", gate=1.0),
    )
    rows = [
        {"prompt": "P", "chosen": f"{n % 5 + 1} x{n}", "rejected": f"-{n % 3} y{n}", "user_id": f"u{n % 4}"}
        for n in range(24)
    ]
    prefs = preferences(folder, rows)
    values, settings = table.prepare(prefs, configs)
    fitted = Columns().fit(ItemTable(prefs, values, settings, settings["fingerprint"]), prefs)
    save_model(folder / "run", fitted)
    return folder


def score(capsys, folder, rows, *more, output="out.jsonl"):
    path = write_rows(folder / "input.jsonl", rows)
    target = folder / output
    target.unlink(missing_ok=True)
    command = [
        "rewards",
        "score",
        "--rewards",
        folder / "run",
        "--input",
        path,
        "--output",
        target,
        "--json",
        *more,
    ]
    status = cli.main([*map(str, command)])
    captured = capsys.readouterr()
    if status:
        assert not target.exists() and not list(folder.glob(".out*")) and captured.err.count("\n") == 1
        return status, captured.err
    opened = gzip.open if output.endswith(".gz") else open
    with opened(target, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return json.loads(captured.out.strip().splitlines()[-1]), lines


def feature_row(number, **more):
    return {
        "prompt": "Which?",
        "completion": f"item {number}",
        "completion_features": items()[number].tolist(),
    } | more


def test_rewards_are_coefficients_times_phi(run, capsys):
    stored = store.load_reward_run(run / "run")
    rows = [feature_row(n, note=f"mine {n}") for n in (3, 0, 7, 3)]
    summary, lines = score(capsys, run, rows)
    phi = Readout.of(stored.basis).features(items()[[3, 0, 7, 3]].astype(np.float32)).astype(np.float64)
    names = list(stored.basis.gauge.names)
    for row, line, own in zip(rows, lines, phi, strict=True):
        assert {key: line[key] for key in row} == row  # what was there stays, in its place
        assert list(line["phi"]) == names
        np.testing.assert_allclose(list(line["phi"].values()), own, rtol=1e-6)
        assert line["reward"] == pytest.approx(float(own @ stored.prior.mean.astype(np.float64)), rel=1e-6)
    assert lines[0]["phi"] == lines[3]["phi"] and "raw" not in lines[0]
    assert summary["rows"] == summary["completions"] == 4 and summary["names"] == names
    assert summary["coefficients"] == pytest.approx(stored.prior.mean.tolist())
    _, alone = score(capsys, run, rows[:1])
    assert alone[0] == lines[0]  # a row depends on no other row


def test_a_person_and_given_coefficients(run, capsys):
    rows = [feature_row(n) for n in range(6)]
    _, lines = score(capsys, run, rows, "--coefficients", "-0.7,1.9")
    for line in lines:
        first, second = line["phi"].values()
        assert line["reward"] == pytest.approx(-0.7 * first + 1.9 * second, rel=1e-9)
    summary, lines = score(capsys, run, rows, "--user", "ada")
    record = json.loads((run / "run" / "users" / "ada.json").read_text())
    assert summary["user"] == "ada" and record["coef_mean"] != summary["reward_mean"]
    assert record["coef_mean"] != pytest.approx(store.load_reward_run(run / "run").prior.mean.tolist())
    for line in lines:
        assert line["reward"] == pytest.approx(
            float(np.dot(np.float32(record["coef_mean"]).astype(float), list(line["phi"].values()))), rel=1e-6
        )


def test_both_sides_of_a_preference_file_without_people(run, capsys):
    rows = [
        {
            "prompt": "Which?",
            "chosen": f"item {a}",
            "rejected": f"item {b}",
            "chosen_features": items()[a].tolist(),
            "rejected_features": items()[b].tolist(),
        }
        for a, b in ((1, 2), (5, 4), (9, 0))
    ]
    summary, lines = score(capsys, run, rows)
    _, single = score(capsys, run, [feature_row(n) for n in (1, 2, 5, 4, 9, 0)])
    above = []
    for line, first, second in zip(lines, single[::2], single[1::2], strict=True):
        assert line["chosen_phi"] == first["phi"] and line["rejected_reward"] == second["reward"]
        above.append(first["reward"] > second["reward"])
    assert summary["chosen_above_rejected"] == pytest.approx(np.mean(above)) and summary["completions"] == 6


def test_raw_rewards_arrive_as_they_are_and_gates_say_no(column_run, capsys):
    rows = [
        {"prompt": "P", "completion": "0.7 a"},
        {"prompt": "other", "completion": "-1.9 unsafe"},
        {"prompt": "P", "chosen": "3 a", "rejected": "0.1 unsafe"},
    ]
    summary, lines = score(capsys, column_run, rows, output="out.jsonl.gz")
    assert [line.get("raw") for line in lines] == [{"value": 0.7}, {"value": -1.9}, None]
    assert lines[2]["rejected_raw"] == {"value": 0.1}
    assert [lines[0]["accepted"], lines[1]["accepted"], lines[2]["rejected_accepted"]] == [True, False, False]
    assert summary["accepted"] == 0.5 and summary["names"] == ["value"]
    stored = store.load_reward_run(column_run / "run").basis.gauge
    wanted = (np.array([0.7, -1.9]) - stored.mean[0]) * stored.whitening[0, 0]
    np.testing.assert_allclose([line["phi"]["value"] for line in lines[:2]], wanted, rtol=1e-5)


def test_chat_rows(column_run, capsys, monkeypatch):
    """Conversations with the completion apart, and inside `messages`."""
    (column_run / "mine.py").touch()
    chat = [{"role": "user", "content": "P"}]
    answer = [{"role": "assistant", "content": "2 b"}]
    rows = [
        {"prompt": chat, "completion": answer},
        {"messages": chat + answer},
        {"prompt": chat, "completion": "2 b"},
    ]
    status, error = score(capsys, column_run, rows)  # this function reads text alone, and the line says where
    assert status == 2 and "row 1, AttributeError" in error and "mine.py:value" in error
    from rewards.data.completions import read_completions

    prefs = read_completions(str(write_rows(column_run / "chat.jsonl", rows)))
    assert prefs.prompts == ((("user", "P"),),) and prefs.item_text == ("2 b",) * 3


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"prompt": "P"}], (), "row 1: field 'completion': is missing"),
        ([feature_row(1), {"completion": 3, "prompt": "P"}], (), "row 2: field 'completion': is int 3"),
        ([{"prompt": "P", "completion": "x"}], (), "no chosen_features/rejected_features"),
        (
            [feature_row(1), {"prompt": "P", "completion": "x"}],
            (),
            "row 2: field 'completion_features': widths",
        ),
        ([feature_row(1, completion_features=[1.0])], (), "reads width 3"),
        ([feature_row(1, reward=0.5)], (), "row 1: field 'reward': stands there already"),
        ([feature_row(1)], ("--user", "nobody"), "no record of user 'nobody'"),
        ([feature_row(1)], ("--coefficients", "1,2,3"), "must be 2 finite numbers"),
        ([feature_row(1)], ("--coefficients", "1,nan"), "--coefficients nan: must be at least"),
        ([feature_row(1)], ("--coefficients", "1,x"), "write numbers with commas"),
        ([feature_row(1)], ("--user", "ada", "--coefficients", "1,2"), "not allowed with"),
        ([], (), "holds no rows"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, capsys, rows, more, message):
    status, error = score(capsys, run, rows, *more)
    assert status == 2 and message in error


def test_no_reward_run(run, tmp_path, capsys):
    path = str(write_rows(tmp_path / "in.jsonl", [feature_row(1)]))
    command = ["rewards", "score", "--input", path, "--output", str(tmp_path / "out"), "--rewards"]
    assert cli.main([*command, str(tmp_path / "none")]) == 2
    assert "no such reward run" in capsys.readouterr().err
    (tmp_path / "vpl").mkdir()
    (tmp_path / "vpl" / "model.json").write_text("{}")
    assert cli.main([*command, str(tmp_path / "vpl")]) == 2
    assert "without a basis, which has no vector rewards" in capsys.readouterr().err


def test_attributes(tmp_path, capsys):
    """Runs over the attributes column take attributes of one completion, too."""
    stored_run(tmp_path, 2, {"kind": "attributes"})
    names = ["price", "speed"]
    pair = {"feature_names": names, "chosen": [0.7, -1.9], "rejected": [2.0, 0.1]}
    rows = [
        {"prompt": "P", "chosen": "a", "rejected": "b", "attributes": pair},
        {"prompt": "P", "completion": "a", "attributes": {"feature_names": names, "completion": [0.7, -1.9]}},
    ]
    _, lines = score(capsys, tmp_path, rows)
    assert lines[1]["phi"] == lines[0]["chosen_phi"] != lines[0]["rejected_phi"]
    assert lines[1]["attributes"] == rows[1]["attributes"]
    rows[1]["attributes"]["completion"] = [0.7]
    status, error = score(capsys, tmp_path, rows)
    assert status == 2 and "row 2" in error and "attributes" in error


def test_a_prompt_that_is_read_off_its_completions_needs_two(tmp_path, capsys):
    """Of pal_b: a completion alone would get a reward of 0, whoever asks."""
    rng, rows = np.random.default_rng(3), []
    for number in range(240):
        a, b = rng.normal(size=(2, WIDTH)) + 3 * np.eye(WIDTH)[number % WIDTH]
        rows.append(
            {
                "prompt": f"P{number % WIDTH}",
                "chosen": f"a{number}",
                "rejected": f"b{number}",
                "user_id": f"u{number % 8}",
                "chosen_features": a.tolist(),
                "rejected_features": b.tolist(),
            }
        )
    prefs = preferences(tmp_path, rows)
    table_of = ItemTable(prefs, prefs.item_features, {"kind": "precomputed"})
    settings = {"num_prototypes": 2, "width": 2, "prompt_dims": 1, "steps": 25}
    save_model(tmp_path / "run", models.make("pal_b", settings).fit(table_of, prefs))
    status, error = score(capsys, tmp_path, [feature_row(0), feature_row(1) | {"prompt": "Other?"}])
    assert status == 2 and "row 1: the only completion of its prompt" in error
    _, lines = score(capsys, tmp_path, [feature_row(0), feature_row(1)])
    assert lines[0]["reward"] != 0 and lines[0]["reward"] != lines[1]["reward"]
