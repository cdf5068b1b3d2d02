"""Every kind of conditioner through the commands: train, generate for a person, export or one line why not."""

import json

import numpy as np
import pytest
import yaml

from rlhf.apps import cli
from rlhf.policy import store as policy_store
from rlhf.run.config.load import load
from rlhf.train.config import DPOConfig
from tests.rlhf.tiny import write_model

ITEMS = np.random.default_rng(1).normal(size=(8, 3))
# kind (prefix is like film until it is exported): its settings, and why one person's policy cannot be exported (None: it can)
KINDS = {
    "film": (["conditioner.shift=false"], None),
    "logit_heads": (["conditioner.rank=2"], None),
    "text": (["model.adapter_layers=null"], "writes into the prompt"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    model = write_model(root / "model")
    rows = []
    for person in range(12):
        for _ in range(6):
            a, b = (int(i) for i in rng.choice(8, 2, replace=False))
            if (ITEMS[a] - ITEMS[b])[0] * (1 if person % 2 else -1) < 0:
                a, b = b, a
            row = {
                "prompt": "Which ?",
                "chosen": f"item {a}",
                "rejected": f"item {b}",
                "user_id": f"p{person}",
            }
            row |= {"chosen_features": ITEMS[a].tolist(), "rejected_features": ITEMS[b].tolist()}
            rows.append(row)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(root / "pairs.jsonl")}
    rewards = {
        "seed": 0,
        "output_dir": str(root / "rewards"),
        "data": data | {"last_choices": 2},
        "encoder": {"kind": "precomputed"},
        "fit": {"num_basis": 2, "dims": 3, "rounds": 2},
        "evaluation": {"counts": [0, 2], "seeds": 1},
    }
    policy = {
        "seed": 0,
        "output_dir": str(root / "policy"),
        "rewards": str(root / "rewards"),
        "data": data,
        "model": {"name": str(model), "adapter_layers": 1},
        "groups": {"completions": None},
        "optimizer": {"learning_rate": 3e-2},
        "train": {"steps": 3, "batch_rows": 4, "log_every": 1},
    }
    for name, config in {"rewards": rewards, "policy": policy}.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["rewards", "fit", str(root / "rewards.yaml")]) == 0
    return root


def ask(capsys, *where):
    words = ["--prompt", "Which ?", "--greedy", "--max-new-tokens", "3", "--json"]
    assert cli.main(["generate", *map(str, where), *words]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_trained_served_and_exported(world, capsys, kind):
    settings, refusal = KINDS[kind]
    run = world / kind
    trained = [f"output_dir={run}", f"conditioner.kind={kind}", *settings]
    assert cli.main(["train", "dpo", str(world / "policy.yaml"), *trained]) == 0
    policy = policy_store.load_policy(run)
    assert policy.spec.kind == kind
    moved = [np.abs(leaf).max() for leaf in policy_store.flatten(policy.params.conditioner).values()]
    assert all(size > 0 for size in moved) and bool(moved) == (kind != "text")
    capsys.readouterr()
    coefficients = ["--coefficients", "2.0,-3.0"]
    own = ask(capsys, "--policy", run, *coefficients)
    assert own["logprobs"] != ask(capsys, "--policy", run)["logprobs"]
    out = world / f"{kind}-exported"
    export = ["export", "--policy", str(run), "--output", str(out)]
    if refusal:
        assert cli.main([*export, *coefficients]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert refusal in error[-1] and "export the aggregate policy" in error[-1]
        assert not out.exists()
    else:
        assert cli.main([*export, *coefficients]) == 0
        capsys.readouterr()
        merged = ask(capsys, "--model", out)
        assert merged["completions"] == own["completions"]
        np.testing.assert_allclose(merged["logprobs"], own["logprobs"], atol=1e-4)


def test_a_wide_conditioner_is_pointed_out(world, capsys):
    run = [f"output_dir={world / 'wide'}", "conditioner.rank=33", "train.steps=1"]
    assert cli.main(["train", "dpo", str(world / "policy.yaml"), *run]) == 0
    assert "33 times 2 basis outputs is 66" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["conditioner.kind=text"],
            "model.adapter_layers is 1, but conditioner.kind text writes into the prompt",
        ),
        (
            ["conditioner.kind=film", "conditioner.rank=2"],
            "rank is for kind low_rank and logit_heads, not film",
        ),
        (["conditioner.slots=9"], "slots is for kind prefix, not low_rank"),
        (["conditioner.kind=prefix", "conditioner.shift=false"], "shift is for kind film, not prefix"),
        (["conditioner.kind=flim"], "flim"),
    ],
)
def test_settings_of_another_kind_are_refused(world, overrides, message):
    with pytest.raises(policy_store.UserError, match=message) as error:
        load(world / "policy.yaml", overrides, DPOConfig)
    assert "\n" not in str(error.value)
