"""Runs side by side: settings that differ, figures, and pairs of what both evaluated."""

import json

import numpy as np
import pytest

from rewards import hashed, jsonl
from rewards.errors import UserError
from rlhf.apps import cli
from rlhf.apps.compare import compare

PEOPLE, PROMPTS = [f"p{i}" for i in range(8)], [f"question {i}" for i in range(9)]


def evaluation(directory, shift, basis="b", people=PEOPLE, prompts=PROMPTS):
    """An evaluation of outputs whose first policy is worth `shift` more, everywhere."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(f"# chorus outputs\nseed: 0\noutput_dir: x\nshift: {shift}\n")
    (directory / "metrics.jsonl").write_text("")
    rows = [
        {"policy": policy, "person": u, "prompt": p, "worth": {"own reward": shift + number / 10 + i / 7}}
        for policy in ("mine", "other")
        for number, u in enumerate(people)
        for i, p in enumerate(prompts)
    ]
    jsonl.write(directory / "samples.jsonl", rows)
    hashed.write_record(directory / "inputs.json", {"inputs": {"rewards": {"basis": basis}}})
    result = {"policies": {"mine": {"quality": {"tokens": 3.0}}, "other": {}}, "verdict": {"text": "found"}}
    hashed.write_record(directory / "metrics.json", result)
    return str(directory)


def test_what_both_evaluated_is_paired(tmp_path):
    a = evaluation(tmp_path / "a", 0.5)
    b = evaluation(tmp_path / "b", 0.2, people=PEOPLE[2:], prompts=[*PROMPTS[3:], "new"])
    [pair] = compare([a, b])["pairs"]
    # Worth depends on the place in the list as well; the shared cells differ by 0.5 − 0.2 + 2/10 + 3/7.
    assert pair["difference"]["mean"] == pytest.approx(0.3 + 0.2 + 3 / 7)
    assert pair["over"] == "6 people and 6 prompts" and pair["runs"] == ["a", "b"]
    other = evaluation(tmp_path / "c", 0.2, basis="another")
    assert compare([a, other])["pairs"] == []  # other rewards: other numbers


def test_people_of_exact_evaluations_are_paired(tmp_path):
    for name, gain in (("a", 0.3), ("b", 0.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("# chorus evaluate\nseed: 0\nrewards: r\n")
        own = (np.arange(8.0) + gain).tolist()
        per_person = {"own_reward": own if name == "a" else own[::-1]}
        people = PEOPLE if name == "a" else PEOPLE[::-1]
        hashed.write_record(
            folder / "metrics.json", {"people": people, "enumerated": {"per_person": per_person}}
        )
    [pair] = compare([str(tmp_path / "a"), str(tmp_path / "b")])["pairs"]
    assert pair["difference"] == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3})


def test_tables_pages_and_names(tmp_path, capsys):
    a = evaluation(tmp_path / "one" / "run", 1)
    training = tmp_path / "two" / "run"
    training.mkdir(parents=True)
    (training / "config.yaml").write_text("# chorus sft\nseed: 1\nmodel: {name: '<script>|x'}\n")
    (training / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2.0}\n'
    )
    out = tmp_path / "out"
    assert cli.main(["compare", a, str(training), "--output", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in result["runs"]] == ["one/run", "two/run"]
    assert result["settings"]["seed"] == {"one/run": 0, "two/run": 1}
    assert result["figures"]["train/loss"] == {"one/run": None, "two/run": 2.0}
    assert result["figures"]["policies.mine.quality.tokens"]["one/run"] == 3.0
    assert json.loads((out / "compare.json").read_text()) == result
    text, page = (out / "compare.md").read_text(), (out / "report.html").read_text()
    assert "| train/loss | – | 2 |" in text and "\\<script\\>\\|x" in text
    assert "<script" not in page and "&lt;script&gt;" in page
    assert cli.main(["compare", a, str(training), "--output", str(out)]) == 0  # again over itself


def test_mistakes_are_named(tmp_path):
    a = evaluation(tmp_path / "a", 0)
    for runs, message in (([a], "at least two"), ([a, a], "same run twice"), ([a, str(tmp_path)], "no run")):
        with pytest.raises(UserError, match=message):
            compare(runs)
    with pytest.raises(UserError, match="not empty"):
        compare([a, evaluation(tmp_path / "b", 1)], str(tmp_path / "a"))


@pytest.mark.parametrize(
    "file, text",
    [
        ("samples.jsonl", "{"),
        ("samples.jsonl", "{}\n"),
        ("samples.jsonl", "[]\n"),
        ("samples.jsonl", '{"policy": "mine", "person": "a", "prompt": "x", "worth": 3}\n'),
        ("samples.jsonl", '{"policy": "mine", "person": "a", "prompt": "x", "worth": {"j": "x"}}\n'),
        ("metrics.json", "{}"),
        ("metrics.json", '{"policies": 3}'),
        ("inputs.json", "{}"),
        ("inputs.json", '{"inputs": 3}'),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, file, text):
    runs = [evaluation(tmp_path / name, 0.1) for name in ("a", "b")]
    (tmp_path / "b" / file).write_text(text)
    with pytest.raises(UserError, match="damaged"):
        compare(runs)


def test_only_a_folder_of_its_own_is_written_into(tmp_path):
    runs = [evaluation(tmp_path / name, 0.1) for name in ("a", "b")]
    (tmp_path / "file").write_text("")
    for output in (runs[0], str(tmp_path / "file"), ""):
        with pytest.raises(UserError, match="--output.*choose another"):
            compare(runs, output)
    compare(runs, str(tmp_path / "out"))
    compare(runs, str(tmp_path / "out"))  # again into its own
