"""Diagnosis: silent on healthy rows, every fault named and nothing else; on drawn-up rows and on real tiny runs."""

import dataclasses
import re
import typing
from pathlib import Path

import numpy as np
import pytest

from rlhf.train.diagnosis.detectors import DETECTORS, diagnose
from rlhf.train.diagnosis.findings import KINDS
from rlhf.train.rl.config import GRPOConfig, PPOConfig
from scripts.pages import read_numbers

ROOT = Path(__file__).parents[4]
ROWS = 60


def healthy(seed: int = 0, count: int = ROWS) -> list[dict]:
    """Rows of a run that learns: the reward rises to a plateau, KL with it, everything else within its usual range."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        done = 1.0 - np.exp(-i / 15)
        noise = rng.normal(size=12)
        row = {
            "reward": 0.5 + done + 0.05 * noise[0],
            "reward_sd": 0.7 + 0.02 * noise[1],
            "zero_variance_share": 0.02,
            "kl_ref_nats": 0.0 if i == 0 else 3.0 * done + 0.3 * noise[2],
            "kl_coef": 0.1,
            "advantage_sd": 0.5 + 0.02 * noise[3],
            "advantage_scale": 0.5,
            "completion_tokens": 20 + noise[4],
            "reward_length_correlation": 0.2 * noise[5],
            "eos_share": 0.8,
            "sampler_gap_nats": 1e-5,
            "z_norm": 1.7,
            "token_entropy_nats": 1.5 - 0.5 * done + 0.05 * noise[6],
            "approx_kl_nats": 0.005,
            "clip_share": 0.08,
            "ratio_max": 2.0 + 0.3 * noise[7] ** 2,
            "stopped_share": 0.0,
            "grad_norm": 1.0 + 0.2 * noise[8] ** 2,
        }
        for k in range(2):
            row |= {f"reward_sd/{k}": 0.6, f"explained_variance/{k}": 0.5 * done + 0.1 * noise[9 + k]}
        rows.append({"step": i + 1} | {f"train/{name}": float(value) for name, value in row.items()})
    return rows


# What each fault changes: value of row i, from what it was. Written down by hand, not computed from the thresholds.
FAULTS = {
    "not_finite": {"loss/total": lambda i, _: None if i == ROWS - 1 else 1.0},
    "sampler_mismatch": {"sampler_gap_nats": lambda i, _: 3.0},
    "wrong_reference": {"kl_ref_nats": lambda i, was: was + 30.0 - 25.0 * min(i / 20, 1.0)},
    "nothing_trained": {
        "ratio_max": lambda i, _: 1.0,
        "kl_ref_nats": lambda i, _: 0.0,
        "reward": lambda i, was: 0.5,
    },
    "no_signal": {"zero_variance_share": lambda i, _: 0.9},
    "negative_kl": {"kl_ref_nats": lambda i, was: -was},
    "exploding_kl": {"kl_ref_nats": lambda i, was: was * (1 + 0.4 * i)},
    "no_progress": {
        "reward": lambda i, was: 0.5 + 0.05 * (-1) ** i,
        "kl_ref_nats": lambda i, was: 2.5 * was,
        "kl_coef": lambda i, _: 0.001,
    },
    "entropy_collapse": {"token_entropy_nats": lambda i, was: was * 0.9**i},
    "entropy_rise": {"token_entropy_nats": lambda i, was: was * 1.02**i},
    "dead_critic": {f"explained_variance/{k}": lambda i, _: -0.1 for k in range(2)},
    "large_updates": {
        "approx_kl_nats": lambda i, was: 0.4 if 10 <= i < 20 else was,
        "ratio_max": lambda i, was: 40.0 if 10 <= i < 20 else was,
    },
    "narrow_clip": {"clip_share": lambda i, _: 0.45},
    "gradient_spikes": {"grad_norm": lambda i, was: 50.0 if i % 4 == 0 else was},
    "length_hacking": {
        "completion_tokens": lambda i, was: was + i,
        "reward_length_correlation": lambda i, _: 0.8,
    },
    "cut_short": {"eos_share": lambda i, _: 0.01},
    "forgot_stop": {"eos_share": lambda i, _: max(0.8 - 0.02 * i, 0.0)},
    "kl_coef_runaway": {"kl_coef": lambda i, _: 0.001 * 1.1**i},
    "early_stops": {"stopped_share": lambda i, _: 0.8},
    "faded_advantages": {"advantage_sd": lambda i, was: was * 0.9**i},
    "impersonal": {"z_norm": lambda i, _: 0.0},
}


def faulty(name: str, seed: int = 0) -> list[dict]:
    rows = healthy(seed)
    for metric, change in FAULTS[name].items():
        for i, row in enumerate(rows):
            row[f"train/{metric}"] = change(i, row.get(f"train/{metric}"))
    return rows


def names(rows: list[dict]) -> list[str]:
    return [finding.name for finding in diagnose(rows)]


def test_every_kind_has_a_detector_a_case_and_a_planted_fault():
    kinds = set(KINDS)
    assert kinds == {detector.__name__ for detector in DETECTORS} == set(FAULTS)
    results = read_numbers(ROOT / "docs/results/rl_faults.json")["faults"]
    assert kinds == {row["expected"] for row in results.values()} - {""}
    assert {cause for kind in KINDS.values() for cause in kind.explained_by} <= kinds


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name):
    for seed in range(5):
        assert names(faulty(name, seed)) == [name]


def test_healthy_rows_are_silent_at_every_length():
    for seed in range(20):
        rows = healthy(seed)
        for count in (0, 1, 2, 3, 5, 8, 12, 20, 35, ROWS):
            assert names(rows[:count]) == [], (seed, count)


def test_single_bad_iterations_are_silent():
    """Noise of one batch: a negative KL, a gradient, an update, a group without variance."""
    rows = healthy()
    for i, (metric, value) in {
        30: ("kl_ref_nats", -4.0),
        40: ("grad_norm", 90.0),
        50: ("approx_kl_nats", 0.5),
        55: ("zero_variance_share", 1.0),
        58: ("ratio_max", 100.0),
    }.items():
        rows[i][f"train/{metric}"] = value
    assert names(rows) == []


def test_what_was_not_logged_is_no_evidence():
    assert names([{"step": step} for step in range(1, ROWS)]) == []
    without = ("explained_variance", "z_norm", "reward_length_correlation", "kl_coef")
    for name in set(FAULTS) - {
        "dead_critic",
        "impersonal",
        "length_hacking",
        "kl_coef_runaway",
        "exploding_kl",
    }:
        rows = [
            {
                key: value
                for key, value in row.items()
                if not key.startswith(tuple(f"train/{w}" for w in without))
            }
            for row in faulty(name)
        ]
        assert names(rows) == [name]


def test_consequences_are_not_reported_beside_their_cause():
    rows = faulty("sampler_mismatch")
    for i, row in enumerate(rows):
        row["train/kl_ref_nats"] = -2.0 if i else 0.0
    assert names(rows) == ["sampler_mismatch"]
    rows = faulty("no_signal")
    for row in rows:
        row |= {"train/explained_variance/0": -0.1, "train/explained_variance/1": -0.1}
    assert names(rows) == ["no_signal"]


def test_worst_comes_first_with_its_numbers_on_one_line():
    rows = faulty("early_stops")
    for row in rows:
        row["train/sampler_gap_nats"] = 3.0
        row["train/eos_share"] = 0.0
    found = diagnose(rows)
    assert [finding.severity for finding in found] == ["stop", "warn", "note"]
    line = found[0].line()
    assert "\n" not in line and line.startswith("stop: sampler_mismatch at step 60 (sampler_gap_nats 3)")
    assert "model.dtype" in line


def leaves(record: type, prefix: str = "") -> typing.Iterator[str]:
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        yield f"{prefix}{field.name}"
        if inner:
            yield from leaves(inner[0], f"{prefix}{field.name}.")


def test_keys_to_change_exist():
    known = {*leaves(PPOConfig), *leaves(GRPOConfig)}
    assert {key for kind in KINDS.values() for key, _ in kind.changes} <= known


def test_every_kind_has_its_section_and_every_metric_its_row():
    page = (ROOT / "docs" / "rl-diagnosis.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `?(\w+)`?$", page, flags=re.M)) == set(KINDS)
    for name in KINDS:
        assert f"](#{name})" in page, f"{name} is in no table"
    rows = "\n".join(re.findall(r"^\| .*$", page, flags=re.M))
    for metric in healthy()[0]:
        metric = re.sub(r"/\d$", "", metric).removeprefix("train/")
        assert metric == "step" or f"`{metric}" in rows, f"{metric} has no row"


def test_committed_runs_were_all_named_and_healthy_ones_silent():
    """The figures of the documentation; `python -m scripts.experiments.rl_faults` makes them again."""
    result = read_numbers(ROOT / "docs/results/rl_faults.json")
    missed = {
        name: row["named"] for name, row in result["faults"].items() if row["named"] < len(result["seeds"])
    }
    assert len(result["seeds"]) >= 5 and missed == {}


def test_real_runs():
    """Three runs of one compiled program: healthy, a critic that is not trained, a reward that is constant."""
    from scripts.experiments import rl_fault_runs as runs

    base = runs.sharp_base()
    for name in ("healthy", "no_value_loss", "constant_reward"):
        fault = runs.FAULTS[name]
        assert names(runs.train(fault, 7, base, 30)) == ([fault.expected] if fault.expected else [])
