"""Kinds of answers in DPO: weights and soft labels of rows, their loss, configuration, and the commands."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from rewards.annotation.basis import run_margins
from rewards.people.population import People
from rewards.types import GroupPrior, UserPosterior
from rlhf.apps import cli
from rlhf.objectives.preference import PreferenceLossConfig
from rlhf.policy.batches import pair_rows
from rlhf.policy.conditioning import RailConfig
from rlhf.train import dpo_step as dpo
from rlhf.train.config import DPOConfig
from tests.rlhf import tiny
from tests.rlhf.policy.test_batches import make_prefs

WEIGHT = np.array([0.4, 0.3, 0.2, 0.9, 0.5], np.float32)
SOFT = np.array([0.8, 0.6, 0.9, 0.5, 1.0], np.float32)


def weighted_rows(size):
    prefs = dataclasses.replace(make_prefs(), outcome=SOFT)
    return pair_rows(prefs, tiny.ToyTokenizer(), observed=True, size=size, max_positions=64, weight=WEIGHT)


def test_rows_carry_weights_and_soft_labels():
    rows = weighted_rows(2)
    # Ann's two equal answers are one row: weights add, labels average by weight; her opposite one is another row.
    np.testing.assert_allclose(rows.label_weight, [0.7, 0.2, 0.9, 0.5], rtol=1e-6)
    np.testing.assert_allclose(rows.outcome[0, 0], (0.4 * 0.8 + 0.3 * 0.6) / 0.7, rtol=1e-6)
    whole = weighted_rows(None)
    # All of Ann's answers are about one pair, in two directions.
    np.testing.assert_allclose(whole.label_weight, [0.9, 0.9, 0.5], rtol=1e-6)
    plain = pair_rows(make_prefs(), tiny.ToyTokenizer(), observed=True, size=2, max_positions=64)
    assert plain.label_weight is None and plain.pair_weight[0, 0] == 2.0


def test_the_loss_is_weighted_cross_entropy_with_soft_labels():
    """−ρ_G [ã log σ(h) + (1−ã) log σ(−h)], by hand."""
    rows = jax.tree.map(jnp.asarray, weighted_rows(2))
    rng = np.random.default_rng(0)
    logprobs, reference = (rng.normal(size=rows.item.shape).astype(np.float32) for _ in range(2))
    loss_config = PreferenceLossConfig(kind="dpo", dpo_beta=0.7)
    loss, _ = dpo.pair_losses(loss_config, RailConfig(), rows, logprobs, reference, None)
    for r in range(4):
        first, second = rows.pairs[r, 0]
        h = 0.7 * ((logprobs - reference)[r, first] - (logprobs - reference)[r, second])
        a = float(rows.outcome[r, 0])
        expected = float(rows.label_weight[r]) * (a * np.log1p(np.exp(-h)) + (1 - a) * np.log1p(np.exp(h)))
        assert float(loss[r]) == pytest.approx(expected, rel=1e-5)


def test_margins_of_a_reward_run_fall_back_to_the_prior():
    prefs = make_prefs()
    phi = np.random.default_rng(1).normal(size=(5, 2))
    prior = GroupPrior(np.array([1.0, -1.0]), np.array([[2.0, 0.5], [0.5, 1.0]]))
    bob = UserPosterior(np.array([0.5, 2.0]), np.array([[4.0, 1.0], [1.0, 3.0]]), 7)
    mean, var = run_margins(prefs, phi, prior, People(("bob",), (bob,)))
    ann, other = phi[0] - phi[1], phi[3] - phi[4]
    assert mean[0] == pytest.approx(ann @ prior.mean) and var[0] == pytest.approx(ann @ prior.cov @ ann)
    assert mean[4] == pytest.approx(other @ bob.coef_mean)
    assert var[4] == pytest.approx(other @ np.linalg.solve(bob.coef_precision, other))


@pytest.mark.parametrize(
    ("kind", "rewards", "message"), [("soft", "r", "own labels"), ("dpo", None, "rewards is required")]
)
def test_configuration_says_where_it_applies(kind, rewards, message):
    settings = {
        "seed": 0,
        "output_dir": "out",
        "data": {"path": "x.jsonl"},
        "model": {"name": "m"},
        "optimizer": {"learning_rate": 1e-4},
        "train": {"steps": 5},
        "rewards": rewards,
        "loss": {"kind": kind, "annotation": "mixture"},
    }
    with pytest.raises(pydantic.ValidationError, match=message):
        DPOConfig(**settings)


def test_audit_and_plan_commands(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    pairs = [("x", "y"), ("y", "z"), ("z", "x"), ("y", "x")]
    rows = [
        {"prompt": "q", "chosen": a, "rejected": b, "user_id": "ann", "timestamp": n, "shown_first": True}
        for n, (a, b) in enumerate(pairs[:3])
    ] + [
        {
            "prompt": "q",
            "chosen": "x",
            "rejected": "z",
            "user_id": "bob",
            "timestamp": 4,
            "shown_first": False,
        }
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["data", "audit", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["cycles"]["rate"] == 1.0 and result["order"]["share"] == 0.75
    assert cli.main(["data", "audit", str(path)]) == 0
    assert "triads cyclic" in capsys.readouterr().out
    assert cli.main(["data", "plan", "--labels", "6000", "--json"]) == 0
    assert 30 <= json.loads(capsys.readouterr().out.splitlines()[-1])["raters"] <= 150
    assert cli.main(["data", "plan", "--labels", "6000", "--raters", "9000"]) == 2
    assert "raters 9000" in capsys.readouterr().err
