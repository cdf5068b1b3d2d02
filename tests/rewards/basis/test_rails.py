"""The record of rails: what may be written, what is refused, and that it stays what was set."""

import json

import numpy as np
import pytest

from rewards import hashed
from rewards.basis import gauge, rails, store
from rewards.basis.belief import Belief
from rewards.errors import UserError

NAMES = ("aggregate", "taste 1", "taste 2")
GIVEN = {
    "axes": [{"name": "taste 1", "locked": 0}, {"name": "taste 2", "low": -1, "high": 0.5}],
    "half_spaces": [{"name": "agreement", "direction": {"aggregate": 1.0, "taste 2": -0.5}, "limit": 0}],
    "trust_nats": 3,
}


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    prior = Belief.from_cov(rng.normal(size=3), np.diag([1.0, 0.5, 2.0]))
    basis, prior, _ = gauge.canonicalise(
        rng.normal(size=(4, 3)),
        prior,
        rng.normal(size=(40, 4)).astype(np.float32),
        np.zeros(40, int),
        encoder={"kind": "columns", "names": list("abcd")},
    )
    store.save_reward_run(tmp_path / "run", basis, prior)
    return store.load_reward_run(tmp_path / "run")


def test_what_is_written_is_read(run):
    assert run.rails is None
    made = rails.stated(GIVEN, NAMES, run.hash, "rails.yaml")
    rails.write(run.directory, made, "first")
    found = store.load_reward_run(run.directory).rails
    assert found == made and found.hash == made.hash and found.locked == ("taste 1",)
    assert [found.of_axis(name) for name in NAMES] == ["free", "locked at +0", "bounded to [-1, +0.5]"]
    assert found.half_spaces[0].direction == (1.0, 0.0, -0.5)
    assert rails.from_json(json.loads(json.dumps(made.to_json())), "x") == made


def test_switching_off_needs_a_reason_and_is_kept(run):
    rails.write(run.directory, rails.stated(GIVEN, NAMES, run.hash, "f"), "first")
    with pytest.raises(UserError, match="needs a reason"):
        rails.write(run.directory, None, "  ")
    rails.write(run.directory, None, "an ablation")
    assert store.load_reward_run(run.directory).rails is None
    history = rails.history(run.directory)
    assert [row["reason"] for row in history] == ["first", "an ablation"]
    assert history[1]["rails"] is None and history[1]["before"] == history[0]["rails"] is not None


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "trick", ["edit", "edit with its hash", "delete", "of another basis", "older", "history"]
)
def test_rails_stay_what_was_set(run, trick):
    path, history = run.directory / rails.RECORD, run.directory / rails.HISTORY
    rails.write(run.directory, rails.stated(GIVEN, NAMES, run.hash, "f"))
    old = path.read_text()
    strict = {"axes": [{"name": "taste 1", "locked": -1}]}
    rails.write(run.directory, rails.stated(strict, NAMES, run.hash, "f"))
    loose = rails.stated({"trust_nats": 9}, NAMES, run.hash, "f")
    if trick == "edit":
        edited(path, lambda content: content["axes"].clear())
    elif trick == "edit with its hash":
        hashed.write_record(path, loose.to_json())
    elif trick == "delete":
        path.unlink()
    elif trick == "of another basis":
        hashed.write_record(path, rails.stated(strict, NAMES, "f" * 64, "f").to_json())
    elif trick == "older":
        path.write_text(old)
    else:
        history.write_text(history.read_text().replace('"reason": null', '"reason": "x"'))
    with pytest.raises(UserError, match=r"rails\.jsonl?"):
        store.load_reward_run(run.directory)


@pytest.mark.parametrize(
    "change,said",
    [
        ({"axes": [{"name": "taste 9", "locked": 0}]}, r"axes\[0\]: no axis 'taste 9'; did you mean 'taste"),
        ({"axes": [{"name": "taste 1", "locked": "mean"}]}, r"locked is 'mean', must be a finite number"),
        ({"axes": [{"name": "taste 1"}]}, r"axes\[0\]: low is None"),
        ({"axes": [{"name": "taste 1", "locked": 0, "low": 1}]}, "locked and bounded; keep one"),
        ({"axes": [{"name": "taste 1", "low": 1, "high": 1}]}, "for one value write locked"),
        ({"axes": [{"name": "taste 1", "lock": 0}]}, "no key 'lock'; did you mean 'locked'"),
        ({"axes": GIVEN["axes"][:1] * 2}, "'taste 1' is there twice"),
        ({"axes": {"name": "taste 1"}}, "axes must be a list"),
        ({"half_spaces": GIVEN["half_spaces"] * 2}, "'agreement' is there twice"),
        ({"half_spaces": [{"name": "x", "direction": [0, 0, 0], "limit": 0}]}, "0 on every axis"),
        ({"half_spaces": [{"name": "x", "direction": [1, 0], "limit": 0}]}, "must be 3 numbers"),
        ({"half_spaces": [{"name": "x", "direction": {"tast 1": 1}, "limit": 0}]}, "no axis 'tast 1'"),
        ({"half_spaces": [{"name": " ", "direction": [1, 0, 0], "limit": 0}]}, "name what nobody"),
        ({"half_spaces": [{"name": "x", "direction": [1, 0, 0]}]}, "limit is None"),
        ({"half_spaces": [{"name": "x", "direction": [float("nan"), 0, 0], "limit": 0}]}, "nan"),
        ({"trust_nats": 0}, "must be above 0"),
        ({"trust_nats": True}, "must be a finite number"),
        ({"axis": []}, "no key 'axis'; did you mean 'axes'"),
        ({}, "holds no rail"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(UserError, match=said):
        rails.stated(change, NAMES, "b", "rails.yaml")
