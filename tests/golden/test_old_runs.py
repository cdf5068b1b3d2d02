"""Runs that an earlier version wrote (`make_old_runs.py`) are still read, served, learned from and resumed.

Numbers are compared with those the earlier version stored, to the last digits that another machine may round otherwise.
"""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from rlhf.apps import cli
from rlhf.run.metrics import read_metrics

OLD = Path(__file__).parent / "old_runs"
POLICIES = ("sft", "dpo", "grpo", "ppo")  # in the order in which they build on one another
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def relocate(root: Path) -> None:
    """Make absolute paths those of `root`, and hashes over files that hold such paths those of the changed files."""
    place = json.loads((root / "made_with.json").read_text())["place"]
    changes = {place: str(root)}
    texts = [path for path in (root / "runs").rglob("*") if path.suffix in (".json", ".yaml")]
    for name in POLICIES:
        record = root / "runs" / name / "policy" / "policy.json"
        before = sha256(record.read_bytes()).hexdigest()
        replace(record, changes)
        changes[before] = sha256(record.read_bytes()).hexdigest()
    for path in texts:
        if path.name != "manifest.json":  # of a checkpoint, which hashes its own files
            replace(path, changes)
    (root / "runs" / "evaluation" / "report.html").touch()  # it was written, and is not kept here


def replace(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """One copy for what only reads."""
    root = tmp_path_factory.mktemp("old") / "runs_of_old"
    shutil.copytree(OLD, root)
    relocate(root)
    return root


@pytest.fixture
def old(copied, monkeypatch):
    """The working folder in which the runs were made, elsewhere."""
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def fresh(copied, tmp_path, monkeypatch):
    """A copy of one's own, for what writes."""
    root = tmp_path / "old"
    shutil.copytree(OLD, root)
    relocate(root)
    monkeypatch.chdir(root)
    return root


def result_of(capsys, *words):
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def stored(root, *parts):
    """What the earlier version wrote, without the hash that a later one adds when it reads it."""
    return {k: v for k, v in json.loads(root.joinpath("runs", *parts).read_text()).items() if k != "sha256"}


def test_paths_name_no_machine():
    made = json.loads((OLD / "made_with.json").read_text())
    for path in OLD.rglob("*.json"):
        text = path.read_text().replace(made["place"], "")
        assert "/home/" not in text and "/root/" not in text and "/work/" not in text, path


@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["rewards", "fit", "inputs/rewards.yaml"], "rewards"),
        (["train", "sft", "inputs/sft.yaml"], "sft"),
        (["train", "dpo", "inputs/dpo.yaml"], "dpo"),
        (["train", "grpo", "inputs/grpo.yaml"], "grpo"),
        (["train", "ppo", "inputs/ppo.yaml"], "ppo"),
        (["evaluate", "inputs/evaluation.yaml"], "evaluation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_finished_run_is_known_by_its_old_configuration(old, capsys, words, run):
    assert cli.main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert "finished earlier" in captured.err
    assert json.loads(captured.out.strip().splitlines()[-1]) == stored(old, run, "metrics.json")


def test_an_unfinished_run_goes_on(fresh, capsys):
    """Checkpoint 4 of 8, as a kill left it. Steps 5 to 8 meet other people than the earlier version's, which rounded
    shares of `users` to whole rows; everything that does not depend on people is the same.
    """
    before = read_metrics(fresh / "runs" / "dpo_unfinished")
    result = result_of(capsys, "train", "dpo", "inputs/dpo.yaml", "output_dir=runs/dpo_unfinished")
    whole = stored(fresh, "dpo", "metrics.json")
    assert set(result) >= set(whole)
    for name in ("step", "train/completion_tokens", "train/learning_rate", "num_rows"):
        np.testing.assert_allclose(result[name], whole[name], **CLOSE, err_msg=name)
    for name in ("train/loss/total", "train/loss/nll", "train/loss/pair", "train/param_norm"):
        np.testing.assert_allclose(result[name], whole[name], rtol=0.02, err_msg=name)
    after = read_metrics(fresh / "runs" / "dpo_unfinished")
    assert [row["step"] for row in after] == list(range(1, 9))
    assert after[:4] == before[:4]


@pytest.mark.parametrize("run", POLICIES)
def test_a_policy_answers_and_its_export_answers_alike(old, capsys, tmp_path, run):
    who = [] if run == "sft" else ["--user", "ada"]
    ask = ["--prompt", "Which ?", "--prompt", "item 3 ?", "--greedy", "--max-new-tokens", "4"]
    answered = result_of(capsys, "generate", "--policy", f"runs/{run}", *who, *ask)
    recorded = json.loads((old / "answers.json").read_text())[run]
    assert answered["completions"] == recorded["completions"]
    np.testing.assert_allclose(answered["logprobs"], recorded["logprobs"], **CLOSE)
    result_of(capsys, "export", "--policy", f"runs/{run}", *who, "--output", tmp_path / "exported")
    again = result_of(capsys, "generate", "--model", tmp_path / "exported", *ask)
    assert again["completions"] == answered["completions"]


def test_people_are_known_and_learned_from(fresh, capsys):
    record = stored(fresh, "rewards", "users", "ada.json")
    shown = result_of(capsys, "users", "show", "ada", "--rewards", "runs/rewards")
    np.testing.assert_allclose(shown["coef_mean"], record["coef_mean"], rtol=1e-6)
    assert (shown["num_answers"], shown["num_edits"]) == (len(record["answers"]), len(record["edits"]))
    assert shown["coverage"] is not None
    update = ["users", "update", "ada", "--rewards", "runs/rewards", "--answers"]
    again = result_of(capsys, *update, "inputs/ada.jsonl")  # nothing new: the posterior is recomputed
    assert (again["added"], again["known"]) == (0, len(record["answers"]))
    np.testing.assert_allclose(again["coef_mean"], record["coef_mean"], rtol=1e-3, atol=1e-4)
    row = json.loads((fresh / "inputs" / "ada.jsonl").read_text().splitlines()[0])
    more = {"user_id": "ada", "prompt": row["prompt"], "chosen": "item 9", "rejected": "item 0"}
    (fresh / "more.jsonl").write_text(json.dumps(more) + "\n")
    assert result_of(capsys, *update, "more.jsonl")["added"] == 1
    people = result_of(capsys, "users", "list", "--rewards", "runs/rewards")["users"]
    assert {"user_id": "ada", "num_answers": len(record["answers"]) + 1} in people


def test_completions_are_scored_as_they_were(old, tmp_path, capsys):
    words = ["--rewards", "runs/rewards", "--user", "ada", "--input", "inputs/completions.jsonl"]
    result_of(capsys, "rewards", "score", *words, "--output", tmp_path / "scored.jsonl")
    now, then = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "scored.jsonl", old / "scored.jsonl")
    )
    for new, was in zip(now, then, strict=True):
        assert new.keys() == was.keys() and new["phi"].keys() == was["phi"].keys()
        np.testing.assert_allclose(new["reward"], was["reward"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(list(new["phi"].values()), list(was["phi"].values()), rtol=1e-3, atol=1e-4)


def test_a_trained_critic_starts_another_run(fresh, capsys):
    words = ["train", "ppo", "inputs/ppo.yaml", "output_dir=runs/ppo_again", "critic.start=runs/ppo"]
    result = result_of(capsys, *words, "train.steps=2")
    assert np.isfinite(result["train/reward"])


def test_another_configuration_is_still_refused(old, capsys):
    assert cli.main(["train", "dpo", "inputs/dpo.yaml", "loss.nll_coef=2.0"]) == 2
    assert "loss.nll_coef is 1.0 there, 2.0 here" in capsys.readouterr().err
