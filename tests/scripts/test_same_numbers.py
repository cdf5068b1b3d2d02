"""`scripts/same_numbers.py`: what counts as a difference; its commands are commands of today."""

import copy
import json
import shlex

import numpy as np
import pytest
import same_numbers
from safetensors.numpy import save_file
from same_numbers_runs import PARTS

from rlhf.apps.cli import parse
from rlhf.run.config.describe import schema_of
from rlhf.run.config.load import load

COMMANDS = [(part, name, words) for part, commands in PARTS.items() for name, words in commands]


@pytest.fixture
def numbers(tmp_path):
    """What is kept of a small run directory."""
    rows = [{"step": n, "train/loss/total": 1.0 / n, "perf/step_seconds": 3.0} for n in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "policy").mkdir()
    save_file({"lora.a": np.arange(6, dtype=np.float32)}, tmp_path / "policy" / "weights.safetensors")
    (tmp_path / "matrix.json").write_text(json.dumps({"reward": [0.5] * 30, "path": "/somewhere"}))
    return same_numbers.of_directory(tmp_path)


def test_time_and_place_are_left_out_and_long_lists_summarised(numbers):
    assert numbers["metrics.jsonl"]["line 2"] == {"step": 2, "train/loss/total": 0.5}
    assert numbers["matrix.json"].keys() == {"reward"} and numbers["matrix.json"]["reward"]["mean"] == 0.5
    kept = numbers["tensors"]["policy/weights:lora.a"]
    assert kept["shape"] == "float32[6]" and kept["mean"] == 2.5
    assert kept["sha256"] == same_numbers.sha256(np.arange(6, dtype=np.float32).tobytes())


def test_the_smallest_change_is_found_and_named(numbers, capsys):
    changed = copy.deepcopy(numbers)
    changed["metrics.jsonl"]["line 2"]["train/loss/total"] = 0.5 + 1e-12
    changed["more"] = 1.0
    assert same_numbers.compare("tiny", {"dpo/": numbers}, {"dpo/": copy.deepcopy(numbers)}, 0.0) == 0
    assert "same" in capsys.readouterr().out
    assert same_numbers.compare("tiny", {"dpo/": numbers}, {"dpo/": changed}, 0.0) == 1
    said = capsys.readouterr().out
    assert "metrics.jsonl › line 2 › train/loss/total" in said and "0.500000000001" in said
    assert "1 of" in said and "1 new quantities" in said
    assert same_numbers.compare("tiny", {"dpo/": numbers}, {"dpo/": changed}, 1e-6) == 0
    assert same_numbers.compare("tiny", {"dpo/": numbers}, {}, 1e-6) == 1  # a run that is not there


def test_one_changed_bit_of_a_tensor_is_a_difference(numbers, tmp_path):
    before = copy.deepcopy(numbers)
    values = np.arange(6, dtype=np.float32)
    values[3] = np.nextafter(values[3], np.float32(4))
    save_file({"lora.a": values}, tmp_path / "policy" / "weights.safetensors")
    assert same_numbers.compare("tiny", {"dpo/": before}, {"dpo/": same_numbers.of_directory(tmp_path)}, 0.0)


@pytest.mark.parametrize(("part", "name", "words"), COMMANDS, ids=[f"{p}: {n}" for p, n, _ in COMMANDS])
def test_commands_parse_and_their_configurations_load(part, name, words, monkeypatch):
    monkeypatch.chdir(same_numbers.INPUTS.parent)
    args = parse(shlex.split(words.replace("configs/", f"{same_numbers.ROOT}/configs/")))
    if hasattr(args, "overrides"):
        kind = args.subcommand if args.command == "train" else args.command
        load(args.config, args.overrides, schema_of(kind))
