"""`guardrails:` from a file to policies: sampled and compiled checks, checks of a data set, resuming."""

import json

import pytest
import yaml

from rlhf.apps import cli
from rlhf.run.metrics import read_metrics
from tests.rlhf.tiny import write_model

FUNCTIONS = """
def words(completions):
    return [0.25 * len(text.split()) for text in completions]

def item(completions):
    return [float("item" in text) for text in completions]

def right(completions, wanted):
    return [float(str(answer) in text) for text, answer in zip(completions, wanted)]

def length(completion_mask):
    return completion_mask.sum(axis=1)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("guard")
    write_model(root / "model")
    rows = [{"prompt": f"item {number} ?", "wanted": number} for number in range(5)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"user_id": "u", "prompt": row["prompt"], "chosen": "item one", "rejected": "two three"}
        for row in rows
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (root / "functions.py").write_text(FUNCTIONS)
    return root


def column(root, name, kind="function", **more):
    return {"name": name, "kind": kind, "function": f"{root / 'functions.py'}:{name}"} | more


def write(root, name, **changes):
    config = {
        "seed": 0,
        "output_dir": str(root / name),
        "model": {"name": str(root / "model"), "adapter_layers": 1},
        "tune": {"lora_rank": 2},
        "optimizer": {"learning_rate": 1e-2},
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config | changes))
    return root / f"{name}.yaml"


def test_grpo_with_every_rail_says_how_often_each_acted(world):
    path = write(
        world,
        "grpo",
        data={"path": str(world / "prompts.jsonl")},
        rollout={"prompts_per_step": 2, "users_per_prompt": 2, "completions": 3, "max_new_tokens": 4},
        kl={"coef": 0.1},
        train={"steps": 3, "checkpoint_every": 1, "samples_every": 0},
        columns=[column(world, "words")],
        population={"mean": [1.0], "sd": [1.0], "completions": 4},
        guardrails={
            "checks": [
                column(world, "item"),
                column(world, "right"),
                column(world, "short", "function", function=f"{world / 'functions.py'}:words", gate=0.5),
            ],
            "behaviour": {"check": "item", "penalty": "both"},
            "truth": {"check": "right"},
            "floor": {},
            "worst": {"groups": 2},
        },
    )
    assert cli.main(["train", "grpo", str(path)]) == 0
    rows = read_metrics(world / "grpo")
    own = {name for name in rows[-1] if name.startswith("train/guard/")}
    assert len(rows) == 3 and len(own) == 16 and all(rows[-1][name] is not None for name in own)
    assert "train/guard/refused_share" in (world / "grpo" / "report.html").read_text()


def test_dpo_gates_overrule_what_people_said(world):
    """Everybody chose the completion that says "item", which fails: the policy learns the other one."""
    gate = column(world, "other", function=f"{world / 'functions.py'}:words", gate=10.0)
    accuracy = {}
    for name, guardrails in (("plain", None), ("nothing", {"checks": [gate]})):
        path = write(
            world,
            name,
            data={"path": str(world / "pairs.jsonl")},
            loss={"kind": "dpo"},
            train={"steps": 4, "batch_rows": 5, "log_every": 1},
            **({"guardrails": guardrails} if guardrails else {}),
        )
        assert cli.main(["train", "dpo", str(path)]) == 0
        accuracy[name] = read_metrics(world / name)[-1]
    assert accuracy["plain"]["train/grad_norm"] > 0
    assert accuracy["nothing"]["train/guard/skipped_share"] == 1.0
    assert accuracy["nothing"]["train/grad_norm"] == 0.0


def test_compiled_checks_stay_inside_the_iteration(world):
    path = write(
        world,
        "jit",
        data={"path": str(world / "prompts.jsonl")},
        rollout={"prompts_per_step": 1, "completions": 4, "max_new_tokens": 4},
        kl={"coef": 0.1},
        train={"steps": 2, "samples_every": 0},
        columns=[column(world, "length", "jit")],
        guardrails={
            "checks": [column(world, "long", "jit", function=f"{world / 'functions.py'}:length", gate=2.0)]
        },
    )
    assert cli.main(["train", "grpo", str(path)]) == 0
    assert 0 <= read_metrics(world / "jit")[-1]["train/guard/refused_share"] <= 1


def test_what_cannot_be_meant_is_one_line(world, capsys):
    path = write(
        world,
        "bad",
        data={"path": str(world / "pairs.jsonl")},
        loss={"kind": "dpo"},
        train={"steps": 1},
        guardrails={"checks": [column(world, "item")], "behaviour": {"check": "item"}},
    )
    assert cli.main(["train", "dpo", str(path)]) == 2
    assert "guardrails.behaviour" in capsys.readouterr().err
