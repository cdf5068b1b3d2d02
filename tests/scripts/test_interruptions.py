"""What the attacks on running commands compare and count; one kill and one signal as they do it, small."""

import json
import random
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "faults"))

import interrupt  # noqa: E402
import page  # noqa: E402
import runs  # noqa: E402


@pytest.fixture
def directory(tmp_path):
    """What a command may leave."""
    folder = tmp_path / "runs" / "sft"
    (folder / "policy").mkdir(parents=True)
    row = {"step": 1, "train/loss/total": 0.5, "perf/step_seconds": 1.0, "line_sha256": "a"}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"train/loss/total": 0.5, "sha256": "a"}))
    (folder / "policy" / "policy.json").write_text(json.dumps({"weights_sha256": "x", "spec": {"rank": 2}}))
    parts = [f"<section><h2>{title}</h2>{body}</section>" for title, body in (("Training", 1), ("Speed", 2))]
    (folder / "report.html").write_text("".join(parts))
    (folder / "environment.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("metrics.jsonl", "0.5", "0.6", True),
        ("metrics.jsonl", "1.0", "2.0", False),
        ("metrics.json", '"a"', '"b"', False),
        ("metrics.json", "0.5", "0.50001", True),
        ("policy/policy.json", '"x"', '"y"', True),
        ("policy/policy.json", "2", "4", True),
        ("report.html", ">1<", ">3<", True),
        ("report.html", ">2<", ">3<", False),
        ("environment.json", "{}", "{1}", False),
    ],
)
def test_every_number_but_times_is_compared(directory, file, old, new, seen):
    before = runs.contents(directory)
    path = directory / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (runs.contents(directory) != before) == seen
    path.unlink()
    assert (runs.contents(directory) != before) == (file != "environment.json")


def test_rounds_are_counted_and_what_was_not_right_is_named(tmp_path):
    rounds = [
        {"command": "sft", "signals": "SIGINT", "status": 130, "ends": 2, "seconds_after": 0.5},
        {"command": "dpo", "signals": "SIGINT", "status": 0, "ends": 1, "seconds_after": 0.1, "late": True},
        {
            "command": "dpo",
            "signals": "SIGINT",
            "status": None,
            "ends": 2,
            "seconds_after": 9.0,
            "problem": "hung",
        },
    ]
    page.add(tmp_path / "page", "signals", rounds[:1])
    page.add(tmp_path / "page", "signals", rounds[1:])
    page.add(tmp_path / "page", "kills", [{"command": "fit", "kills": 3, "ends": 1}])
    page.write(tmp_path / "page")
    text = (tmp_path / "page.md").read_text()
    assert "| SIGINT | 2 | 130: 1, None: 1 | 2 of 3 | 5 | 9.0 |" in text and "- dpo / SIGINT: hung" in text
    assert "| fit | 3 | 1 | 1 |" in text and "| all | 3 | 1 | 1 |" in text


def test_the_committed_page_is_that_of_the_committed_counts():
    assert page.text(page.read(page.PATH)) == page.PATH.with_suffix(".md").read_text()


def test_a_command_that_is_killed_and_one_that_is_interrupted_end_as_one_that_is_not(tmp_path):
    world = runs.World(tmp_path, forked=False)
    world.make("sft")
    rng = random.Random(0)
    world.forget("sft")
    killed = world.run("sft", [(runs.Changes(world.changes["sft"] // 2), signal.SIGKILL)])
    assert killed.status == 128 + signal.SIGKILL
    assert interrupt.finish(world, "sft", world.run("sft")) == {}
    found = interrupt.signal_round(world, "sft", "SIGTERM", rng)
    assert "problem" not in found and found["status"] in (0, 143)
    weights = world.directory("sft") / "policy" / "weights.safetensors"
    weights.rename(weights.with_name(".weights.tmp"))
    assert "policy/weights.safetensors" in interrupt.finish(world, "sft", world.run("sft"))["problem"]
