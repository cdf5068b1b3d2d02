"""Reward models end to end: TRL's loss and gradient, the exported classifier, tastes that are told apart, what is refused."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from trl import RewardTrainer

from rewards import jsonl
from rewards.data.read import read_preferences
from rewards.errors import UserError
from rewards.hashed import load
from rlhf.apps.cli import main
from rlhf.models.save import save_hf
from rlhf.phi.columns.classifier import ClassifierColumn
from rlhf.policy import store as policy_store
from rlhf.run.config.load import made
from rlhf.run.directory import read_result
from rlhf.run.record import traced
from rlhf.train.optim import OptimizerConfig
from rlhf.train.reward import step, trainer
from rlhf.train.reward.config import RewardTrainConfig
from rlhf.train.sft import fresh_policy, frozen_parts, open_base, trained_parts
from tests.rlhf import tiny

PAIRS = [
    {
        "prompt": f"item {n} ?",
        "chosen": f"item {n % 8}",
        "rejected": f"item {(n + k) % 8} item 1",
        "strength": 0.1 * n,
    }
    for n in range(4)
    for k in (1, 3)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model", pad_token_id=0)


def configured(model, data, output="unused", **more):
    values = {
        "seed": 0,
        "output_dir": str(output),
        "data": {"path": str(data)},
        "model": {"name": str(model)},
        "optimizer": {"learning_rate": 0.03},
        "train": {"steps": 3, "batch_rows": 4},
        **more,
    }
    return made(values, RewardTrainConfig, "test", {})


@pytest.mark.parametrize("margin, centring", [(None, 0.0), ("strength", 0.0), ("strength", 0.01)])
def test_loss_and_gradient_are_trls(tmp_path, model, margin, centring):
    head = {"margin_column": margin, "centring": centring}
    config = configured(model, tmp_path / "unused", head=head, tune={"mode": "full"})
    prefs, base = read_preferences(PAIRS, people=False), open_base(config)
    rows = trainer.comparison_rows(config, prefs, base)
    graphdef, params, key = fresh_policy(config, base, None)
    score = step.init_head(config.head, base.config.width, 0, key)
    program = step.RewardProgram(graphdef, "last")
    settings = traced(
        step.RewardSettings(
            optimizer=OptimizerConfig(learning_rate=0.1),
            num_steps=9,
            centring=centring,
            prior_sd=1.0,
            num_rows=8,
        )
    )
    (loss, _), grads = jax.value_and_grad(step.loss_of, has_aux=True)(
        trained_parts(params, True) | {"score": score},
        frozen_parts(params, True),
        jax.tree.map(jnp.asarray, rows),
        jnp.asarray(8.0),
        settings,
        program,
    )
    tree = jax.tree.map(np.asarray, base.tree) | {"score": {"kernel": np.asarray(score["shared"])}}
    raw = tiny_config(model)
    save_hf(tmp_path / "hf", tree, raw, model, labels=("reward",))
    kind = transformers.AutoModelForSequenceClassification
    theirs = kind.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    expected = trl_loss(theirs, tmp_path / "hf", prefs, margin, centring)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(
        grads["score"]["shared"][:, 0], theirs.score.weight.grad[0], rtol=1e-4, atol=1e-6
    )
    embedded = theirs.model.embed_tokens.weight.grad
    np.testing.assert_allclose(grads["base"]["embed"]["embedding"][...], embedded, rtol=1e-4, atol=1e-6)


def tiny_config(model):
    from rlhf.models.load import read_hf_config

    return read_hf_config(model)


def trl_loss(model, directory, prefs, margin, centring):
    """TRL's own `compute_loss` on the comparisons as its collator lays them out: all chosen, then all rejected."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    sides = [*prefs.chosen.tolist(), *prefs.rejected.tolist()]
    ids = [
        [
            *tokenizer.encode(f"{prefs.prompts[prefs.item_prompt[item]]}{prefs.item_text[item]}"),
            tokenizer.eos_token_id,
        ]
        for item in sides
    ]
    longest = max(map(len, ids))
    inputs = {
        "input_ids": torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
    }
    if margin:
        inputs["margin"] = torch.tensor(prefs.columns[margin], dtype=torch.float32)
    same = types.SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value)
    stand_in = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        args=types.SimpleNamespace(center_rewards_coefficient=centring or None),
        accelerator=same,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
    )
    return RewardTrainer.compute_loss(stand_in, model, inputs)


def test_a_reward_model_is_a_classifier_that_columns_and_transformers_read(tmp_path, model, capsys):
    jsonl.write(tmp_path / "pairs.jsonl", PAIRS)
    words = ["rewards", "train", "--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), "--output-dir",
             str(tmp_path / "run"), "train.epochs=20", "optimizer.learning_rate=0.03", "tune.lora_rank=4"]  # fmt: skip
    assert main(words) == 0
    first = read_result(tmp_path / "run")
    assert first["train/accuracy"] == 1.0 and first["train/loss/pair"] < 0.3
    prefs = read_preferences(PAIRS, people=False)
    found = (
        ClassifierColumn("rm", str(tmp_path / "run" / "classifier")).measure(prefs, fitting=True).values[:, 0]
    )
    assert (found[prefs.chosen] > found[prefs.rejected]).all()
    # The same numbers as the training run's own model and head.
    loaded = policy_store.load_base(tmp_path / "run", adapter_layers=None, dtype="float32")
    head, _ = load(tmp_path / "run", "head", lambda record: {"shared": (loaded.config.width, 1)}, "")
    config = configured(model, tmp_path / "pairs.jsonl")
    rows = jax.tree.map(jnp.asarray, trainer.comparison_rows(config, prefs, loaded))
    graphdef, params, _ = policy_store.base_state(loaded, None, "float32", False)
    own = step.rewards_of(step.RewardProgram(graphdef, "last"), params, head, rows)
    np.testing.assert_allclose(own[:, 0], found[prefs.chosen], atol=1e-5)
    np.testing.assert_allclose(own[:, 1], found[prefs.rejected], atol=1e-5)
    capsys.readouterr()
    assert main(words) == 0 and read_result(tmp_path / "run") == first
    assert "step" not in capsys.readouterr().err.replace("train.steps", "")


def divided_pairs(people=24, each=8):
    """Half of the people like texts with “item 1”, the others those with “item 2”: nobody agrees with everybody."""
    rng = np.random.default_rng(0)
    rows = []
    for person in range(people):
        for _ in range(each):
            prompt, other = rng.integers(0, 8, 2)
            ours, theirs = f"item 1 item {other}", f"item 2 item {other}"
            chosen, rejected = (ours, theirs) if person % 2 else (theirs, ours)
            rows.append(
                {
                    "user_id": f"p{person}",
                    "prompt": f"item {prompt} ?",
                    "chosen": chosen,
                    "rejected": rejected,
                }
            )
    return rows


PEOPLE = divided_pairs()


def test_tastes_are_told_apart_and_end_in_a_reward_run(tmp_path, model, capsys):
    jsonl.write(tmp_path / "pairs.jsonl", divided_pairs())
    shared = ["rewards", "train", "--model", str(model), "--data", str(tmp_path / "pairs.jsonl"), "train.steps=60",
              "optimizer.learning_rate=0.01", "train.epochs=null", "train.batch_rows=16", "tune.lora_rank=4"]  # fmt: skip
    for num_basis in (0, 2):
        place = str(tmp_path / f"run{num_basis}")
        more = ["head.pool=mean", "fit.num_basis=2", "fit.dims=4"] if num_basis else []
        assert main([*shared, "--output-dir", place, f"head.num_basis={num_basis}", *more]) == 0
    accuracy = [read_result(tmp_path / f"run{num_basis}")["train/accuracy"] for num_basis in (0, 2)]
    assert accuracy[0] < 0.75 and accuracy[1] > 0.95
    import rewards

    (tmp_path / "run2").rename(tmp_path / "moved")  # its encoder lies around it, wherever it is
    scored = tmp_path / "scored.jsonl"
    words = ["--rewards", str(tmp_path / "moved" / "rewards"), "--input", str(tmp_path / "pairs.jsonl")]
    assert main(["rewards", "score", *words, "--output", str(scored)]) == 0 and scored.exists()
    (tmp_path / "moved").rename(tmp_path / "run2")
    capsys.readouterr()
    fitted = rewards.load(tmp_path / "run2" / "rewards")
    assert fitted.num_basis == 2 and fitted.questions
    for words in (["generate", "--policy"], ["generate", "--model"]):
        assert main([*words, str(tmp_path / "run2"), "--prompt", "item 1 ?", "--max-new-tokens", "2"]) == 2
        assert "a reward model (chorus rewards train), which judges" in capsys.readouterr().err
    assert read_result(tmp_path / "run2" / "rewards")["training_accuracy"] > 0.95


@pytest.mark.parametrize(
    "rows, more, said",
    [
        (PAIRS, {"head": {"margin_column": "strenght"}}, "no such column; it has strength"),
        (
            [PAIRS[0] | {"strength": "much"}],
            {"head": {"margin_column": "strength"}},
            "row 1: strength is 'much'",
        ),
        *(
            (
                [PAIRS[0] | {"strength": margin}],
                {"head": {"margin_column": "strength"}},
                "row 1: strength is ",
            )
            for margin in (1e300, -1e7, 10**400, None, True, [1.0])
        ),
        (PAIRS, {"mesh": {"processes": 1, "coordinator": "host:1"}}, "coordinator host:1: not read with"),
        (PAIRS, {"head": {"num_basis": 2}}, "column 'user_id' is missing"),
        (PAIRS, {"head": {"pool": "mean"}}, "head.pool mean with head.num_basis 0"),
        (PAIRS, {"head": {"centring": -1}}, "head.centring"),
        (PAIRS, {"mesh": {"processes": 2}}, "mesh.processes 2: reward models are trained by one process"),
        (PAIRS, {"mesh": {"coordinator": "host:1"}}, "mesh.coordinator host:1: reward models"),
        (PAIRS, {"mesh": {"process": 0}}, "mesh.process 0: reward models"),
        (PAIRS, {"mesh": {"processes": 1, "process": 1}}, "process 1 of processes 1"),
        (PEOPLE, {"head": {"num_basis": 19}}, "head.num_basis 19: .* in at most 16 directions"),
        (PEOPLE[:24], {"head": {"num_basis": 3}}, "head.num_basis 3: 2 training people"),
        (
            PEOPLE[:24],
            {"head": {"num_basis": 2}},
            "2 people with two comparisons are too few to choose num_basis",
        ),
        ([row | {"outcome": 0.5} for row in PEOPLE], {"head": {"num_basis": 2}}, "comparisons are ties"),
        (
            PEOPLE,
            {"head": {"num_basis": 2}, "fit": {"num_basis": 9, "dims": (4, 6)}},
            "num_basis: 9 outputs asked for, but dims",
        ),
        (PEOPLE, {"head": {"num_basis": 2}, "fit": {"model": "howse"}}, "did you mean 'house'"),
        (PEOPLE, {"head": {"num_basis": 2}, "fit": {"model": "lore", "settings": {"rnak": 2}}}, "rnak"),
        (PEOPLE, {"head": {"num_basis": 2}, "evaluation": {"models": ("lroe",)}}, "evaluation.models"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(tmp_path, model, rows, more, said):
    jsonl.write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=said):
        trainer.run(configured(model, tmp_path / "pairs.jsonl", tmp_path / "run", **more))
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "policy").exists()
