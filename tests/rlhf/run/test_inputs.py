"""A resumed run, a stored policy and stored rewards refuse what is not what they were made with, and say what it is."""

import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
import yaml

from rlhf.apps import cli
from rlhf.phi import encoder
from rlhf.phi.columns.imports import sources
from rlhf.policy import store
from rlhf.run import directory, inputs
from rlhf.train import loop
from tests.rlhf import tiny
from tests.rlhf.api.world import table

STEPS, STOPPED = 4, 2
FUNCTION = """
import importlib

import helper
from parts import inner

def reward(prompts, completions, **columns):
    late = importlib.import_module("late")
    return [helper.scale() * len(text) + inner.SHIFT * late.FACTOR for text in completions]
"""


class Killed(BaseException):
    """Stands for the end of the process."""


def classifier(folder):
    """A sequence-classification model of one label."""
    tiny.write_model(folder, seed=5)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "good"}, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    head = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)
    safetensors.numpy.save_file(tensors | {"score.weight": head}, folder / "model.safetensors")


def configurations():
    train = {"steps": STEPS, "checkpoint_every": STOPPED, "log_every": 1}
    shared = {
        "seed": 3,
        "model": {"name": "model", "dtype": "float32"},
        "optimizer": {"learning_rate": 1e-2},
        "tune": {"lora_rank": 2},
        "data": {"path": "pairs.jsonl"},
        "train": train,
    }
    supervised = shared | {"train": train | {"batch_rows": 2}}
    rl = shared | {
        "rollout": {"prompts_per_step": 2, "completions": 2, "max_new_tokens": 3},
        "kl": {"coef": 0.05},
    }
    function = {"name": "long", "kind": "function", "function": "reward.py:reward"}
    return {
        "sft": supervised,
        "dpo": supervised | {"rewards": "rewards"},
        "grpo": rl | {"columns": [function]},
        "ppo": rl | {"columns": [{"name": "good", "kind": "classifier", "model": "judge"}]},
        "rewards": {
            "seed": 0,
            "data": {"path": "pairs.jsonl", "held_out_people": 0.2},
            "model": {"name": "model"},
            "encoder": {"kind": "lm"},
            "fit": {"num_basis": 2, "dims": 4, "rounds": 3},
        },
    }


def command(kind, run="run"):
    words = ["rewards", "fit"] if kind == "rewards" else ["train", kind]
    return cli.main([*words, f"{kind}.yaml", f"output_dir={run}"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, data, rewards, and one run of every kind that was killed after its first checkpoint."""
    root = tmp_path_factory.mktemp("inputs")
    tiny.write_model(root / "model")
    (root / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    (root / "model" / "generation_config.json").write_text('{"eos_token_id": 1}')
    classifier(root / "judge")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table()))
    (root / "reward.py").write_text(FUNCTION)
    for folder in ("model", "judge"):
        (root / folder / "special_tokens_map.json").write_text('{"eos_token": "<eos>"}')
    (root / "late.py").write_text("FACTOR = 2.0\n")
    (root / "helper.py").write_text("def scale():\n    return 1.0\n")
    (root / "parts").mkdir()
    (root / "parts" / "__init__.py").touch()
    (root / "parts" / "inner.py").write_text("SHIFT = 1.0\n")
    for kind, config in configurations().items():
        (root / f"{kind}.yaml").write_text(yaml.safe_dump(config))
    report = loop._report

    def killed(numbers, step, *rest):
        if step == STOPPED + 1:
            raise Killed
        return report(numbers, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        assert command("rewards", "rewards") == 0
        assert command("sft", "policy") == 0
        patch.setattr(loop, "_report", killed)
        for kind in ("sft", "dpo", "grpo", "ppo"):
            with pytest.raises(Killed):
                command(kind, f"run-{kind}")
    return root


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the folder, worked in."""
    shutil.copytree(world, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.syspath_prepend(str(tmp_path / "copy"))
    return tmp_path / "copy"


def edit(path, old=None, new=""):
    if path.suffix == ".safetensors":
        tensors = safetensors.numpy.load_file(path)
        name = sorted(tensors)[0]
        safetensors.numpy.save_file(tensors | {name: tensors[name] * np.float32(1.001)}, path)
    else:
        text = path.read_text()
        assert old is None or old in text
        path.write_text(text + new if old is None else text.replace(old, new))


@pytest.mark.parametrize(
    ("kind", "file", "change", "said"),
    [
        ("sft", "pairs.jsonl", ("item 3", "item 30"), "data.path: pairs.jsonl changed"),
        ("sft", "model/model.safetensors", (), "model.name: weights changed"),
        ("sft", "model/tokenizer.json", ("39", "390"), "model.name: tokenizer.json changed"),
        ("sft", "model/tokenizer_config.json", (None, "\n"), "model.name: tokenizer_config.json changed"),
        ("sft", "model/chat_template.jinja", (None, "!"), "model.name: chat_template.jinja changed"),
        ("sft", "model/config.json", ("100.0", "200.0"), "model.name: config.json changed"),
        (
            "sft",
            "model/generation_config.json",
            ("1", "[1, 2]"),
            "model.name: generation_config.json changed",
        ),
        ("dpo", "pairs.jsonl", ("item 3", "item 30"), "data.path: pairs.jsonl changed"),
        ("dpo", "rewards", ("fit.rounds=2",), "rewards: basis changed"),
        ("grpo", "reward.py", ("len(text)", "-len(text)"), "column 'long': reward.py changed"),
        ("grpo", "helper.py", ("1.0", "2.0"), "column 'long': helper.py changed"),
        ("grpo", "parts/inner.py", ("1.0", "2.0"), "column 'long': parts/inner.py changed"),
        ("grpo", "parts/__init__.py", (None, "x = 1\n"), "column 'long': parts/__init__.py changed"),
        ("grpo", "late.py", ("2.0", "3.0"), "column 'long': late.py changed"),
        ("sft", "model/special_tokens_map.json", (None, " "), "model.name: special_tokens_map.json changed"),
        (
            "dpo",
            "model/generation_config.json",
            ("1", "[1, 2]"),
            "model.name: generation_config.json changed",
        ),
        ("dpo", "model/chat_template.jinja", (None, "!"), "model.name: chat_template.jinja changed"),
        ("grpo", "model/model.safetensors", (), "model.name: weights changed"),
        ("ppo", "pairs.jsonl", ("Which", "item"), "data.path: pairs.jsonl changed"),
        (
            "ppo",
            "judge/special_tokens_map.json",
            (None, " "),
            "column 'good': special_tokens_map.json changed",
        ),
        ("ppo", "judge/tokenizer.json", ("39", "390"), "column 'good': tokenizer.json changed"),
        ("grpo", "pairs.jsonl", ("Which", "item"), "data.path: pairs.jsonl changed"),
        ("ppo", "judge/model.safetensors", (), "column 'good': weights changed"),
        ("ppo", "judge/config.json", ("100.0", "200.0"), "column 'good': config.json changed"),
    ],
)
def test_a_resumed_run_refuses_what_has_changed(here, capsys, kind, file, change, said):
    shutil.copytree(here, here.parent / "before")
    if file == "rewards":
        shutil.rmtree(here / "rewards")
        assert cli.main(["rewards", "fit", "rewards.yaml", "output_dir=rewards", *change]) == 0
    else:
        edit(here / file, *change)
    capsys.readouterr()
    assert command(kind, f"run-{kind}") == 2
    err = capsys.readouterr().err
    assert said in err and "now); restore it or choose another output_dir" in err
    assert len([line for line in err.splitlines() if line.startswith("chorus:")]) == 1
    assert not (here / f"run-{kind}" / "metrics.json").exists()
    if file in ("helper.py", "model/config.json"):
        shutil.copy(here.parent / "before" / file, here / file)
        assert command(kind, f"run-{kind}") == 0


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("pairs.jsonl", ("item 3", "item 30"), "data.path: pairs.jsonl changed"),
        ("model/model.safetensors", (), "model.name: weights changed"),
        ("model/chat_template.jinja", (None, "!"), "model.name: chat_template.jinja changed"),
    ],
)
def test_a_finished_fit_refuses_what_changed(here, capsys, file, change, said):
    edit(here / file, *change)
    for words in (["rewards", "fit"], ["rewards", "evaluate"]):
        assert cli.main([*words, "rewards.yaml", "output_dir=rewards"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "file", "change", "said"),
    [
        ("sft", "pairs.jsonl", ("item 3", "item 30"), "data.path: pairs.jsonl changed"),
        ("sft", "model/config.json", ("100.0", "200.0"), "model.name: config.json changed"),
        ("dpo", "model/tokenizer.json", ("39", "390"), "model.name: tokenizer.json changed"),
        ("grpo", "helper.py", ("1.0", "2.0"), "column 'long': helper.py changed"),
        ("ppo", "judge/model.safetensors", (), "column 'good': weights changed"),
    ],
)
def test_a_finished_run_does_not_pass_for_one_with_other_inputs(here, capsys, kind, file, change, said):
    assert command(kind, f"run-{kind}") == 0
    edit(here / file, *change)
    capsys.readouterr()
    assert command(kind, f"run-{kind}") == 2
    assert said in capsys.readouterr().err


def evaluation(here):
    """A policy with users and its evaluation, which reads data, policy, rewards and π_ref."""
    assert command("dpo", "users") == 0
    config = {
        "seed": 0,
        "policy": "users",
        "rewards": "rewards",
        "model": {"name": "model"},
        "data": {"path": "pairs.jsonl", "held_out_people": 0.3},
        "users": {"answers": 2},
        "sampling": {"num_samples": 1, "max_new_tokens": 3},
    }
    (here / "evaluate.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["evaluate", "evaluate.yaml", "output_dir=evaluation"]) == 0


def test_an_evaluation_is_not_repeated_and_does_not_pass_for_one_of_something_else(here, capsys, monkeypatch):
    from rlhf.evaluation import policy

    evaluation(here)
    again = ["evaluate", "evaluate.yaml", "output_dir=evaluation"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(policy, "judge", None)  # nothing is judged
        assert cli.main(again) == 0
        assert "finished earlier" in capsys.readouterr().err
        (here / "evaluation" / directory.INPUTS).unlink()  # as evaluations of before
        for times in (1, 0):
            assert cli.main(again) == 0
            assert capsys.readouterr().err.count("begun before runs recorded") == times
    for file, change, said in (
        ("model/config.json", ("100.0", "200.0"), "config.json changed"),
        ("model/chat_template.jinja", (None, "!"), "chat_template.jinja changed"),
        ("model/tokenizer_config.json", (None, "\n"), "tokenizer_config.json changed"),
        ("model/model.safetensors", (), "weights differ"),
    ):
        before = (here / file).read_bytes()
        edit(here / file, *change)
        assert cli.main(again) == 2
        assert said in capsys.readouterr().err
        (here / file).write_bytes(before)
    edit(here / "pairs.jsonl", "item 3", "item 30")
    judged = []
    with monkeypatch.context() as patch:
        patch.setattr(policy, "judge", lambda *arguments: judged.append(arguments) or pytest.fail("judged"))
        with pytest.raises(pytest.fail.Exception):
            cli.main(again)
    assert judged  # other data: evaluated anew


@pytest.mark.parametrize("place", ["rlhf.report.write_rewards_report", "rlhf.run.directory.Run.write_result"])
def test_a_fit_that_is_killed_between_its_last_files_is_not_finished(here, monkeypatch, place):
    def killed(*arguments, **keywords):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises(Killed):
            command("rewards", "again")
    assert not (here / "again" / "metrics.json").exists()
    assert command("rewards", "again") == 0
    (here / "again" / "report.html").unlink()
    assert command("rewards", "again") == 0
    assert (here / "again" / "report.html").is_file()


def test_a_run_from_before_is_recorded_now_and_said_once(here, capsys):
    (here / "run-sft" / directory.INPUTS).unlink()
    assert command("sft", "run-sft") == 0
    assert capsys.readouterr().err.count("begun before runs recorded what they read") == 1
    recorded = json.loads((here / "run-sft" / directory.INPUTS).read_text())["inputs"]
    assert {"weights", "tokenizer.json", "config.json"} <= recorded["model.name"].keys()


def test_before_the_first_checkpoint_a_mended_file_is_taken(here, capsys):
    shutil.rmtree(here / "run-sft" / "checkpoints")
    edit(here / "pairs.jsonl", "item 3", "item 30")
    assert command("sft", "run-sft") == 0


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", ("39", "390")),
        ("chat_template.jinja", (None, "!")),
        ("config.json", ("100.0", "200.0")),
        ("generation_config.json", ("1", "[1, 2]")),
    ],
)
def test_a_policy_refuses_another_base(here, capsys, file, change):
    generate = ["generate", "--policy", "policy", "--prompt", "Which ?", "--max-new-tokens", "2"]
    edit(here / "model" / file, *change)
    for words in (generate, ["export", "--policy", "policy", "--output", "out"]):
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert f"{file} changed" in err and "since policy was trained; restore it or train again" in err
    assert not (here / "out").exists()
    # The same for rewards whose embeddings are remembered.
    assert (
        cli.main(["rewards", "score", "--rewards", "rewards", "--input", "pairs.jsonl", "--output", "out"])
        == 2
    )
    assert f"{file} changed" in capsys.readouterr().err


def test_a_policy_from_before_gets_its_identities_once(here, capsys):
    record = json.loads((here / "policy" / "policy" / store.POLICY).read_text())
    del record["base_files"], record["sha256"]
    (here / "policy" / "policy" / store.POLICY).write_text(json.dumps(record))
    before = store.identity("policy")
    capsys.readouterr()
    store.load_policy("policy")
    store.load_policy("policy")
    assert capsys.readouterr().err.count("trained before policies recorded") == 1
    assert store.identity("policy") == before  # what refers to it still does
    edit(here / "model" / "config.json", "100.0", "200.0")
    with pytest.raises(store.UserError, match=r"config\.json changed"):
        store.load_policy("policy")


def test_rewards_from_before_do_not_reuse_embeddings_of_another_tokenizer(here):
    from rewards.basis.store import load_reward_run
    from rewards.data.read import read_preferences

    settings = dict(load_reward_run("rewards").basis.encoder)
    prefs = read_preferences("pairs.jsonl")
    del settings["files"]
    first = encoder.embed_items(prefs, settings)
    edit(here / "model" / "config.json", "100.0", "1000.0")
    assert np.abs(encoder.embed_items(prefs, settings) - first).max() > 1e-5


def test_files_of_the_project_are_found_and_installed_ones_left_out(here):
    (here / "parts" / "deep.py").write_text(
        "from . import inner\nfrom .. import nothing\nimport numpy, json\n"
    )
    (here / "late.py").write_text(
        "def f():\n    import parts.deep\n    from rlhf import anything\n    import missing\n"
    )
    assert list(sources(here / "late.py")) == [
        "late.py",
        "parts/__init__.py",
        "parts/deep.py",
        "parts/inner.py",
    ]
    (here / "bad.py").write_text("def (:\n")
    assert list(sources(here / "bad.py")) == ["bad.py"]


def test_content_depends_on_every_field_but_the_place(here):
    from rewards.data.read import read_preferences

    one = read_preferences("pairs.jsonl")
    shutil.copy("pairs.jsonl", "copy.jsonl")
    assert inputs.content(one) == inputs.content(read_preferences("copy.jsonl"))
    edit(here / "copy.jsonl", '"p00"', '"p0x"')
    assert inputs.content(one) != inputs.content(read_preferences("copy.jsonl"))


def test_imports_are_found_however_they_are_written(here):
    (here / "parts" / "time.py").write_text("")  # a built-in module's name
    (here / "parts" / "_compiled.so").write_bytes(b"")
    (here / "names.py").write_text("from parts import *\nimport sys, yaml\n")
    (here / "words.py").write_text('__import__("helper")\nfrom importlib import import_module as load\n')
    (here / "spread" / "deep").mkdir(parents=True)  # a package without __init__.py
    (here / "spread" / "deep" / "end.py").write_text("from spread.deep import nothing")
    (here / "far.py").write_text("from spread.deep import end\n")
    assert list(sources(here / "far.py")) == ["far.py", "spread/deep/end.py"]
    (here / "parts" / "near.py").write_text('from .time import x\nimport_module(".inner", __package__)\n')
    assert {"parts/inner.py", "parts/time.py", "parts/__init__.py", "names.py"} <= sources(
        here / "names.py"
    ).keys()
    assert list(sources(here / "words.py")) == ["helper.py", "words.py"]
    assert list(sources(here / "parts" / "near.py")) == ["inner.py", "near.py", "time.py"]


SCRIPT = """
import functools, sys
import numpy as np
import rlhf
import helper

LIMIT = 5
TABLE = {{"a": [1.0, 2.0]}}
ARRAY = np.arange(3.0)

class Scorer:
    shift = 1.0
    def __init__(self, weight):
        self.weight = weight
    def __call__(self, prompts, completions, **columns):
        return [self.weight * len(text) + self.shift for text in completions]

def inner(text):
    return len(text) * helper.scale()

def plain(prompts, completions, **columns):
    return [min(LIMIT, inner(text)) + TABLE["a"][0] + ARRAY.sum() for text in completions]

def make(factor):
    def closed(prompts, completions, **columns):
        return [factor * len(text) for text in completions]
    return closed

def partly(factor, prompts, completions, **columns):
    return [factor * len(text) for text in completions]

UNUSED = 1
scorer = Scorer(2.0)
functions = [plain, make(3.0), functools.partial(partly, 2.0), scorer]
from rlhf.phi.columns import functions as columns
for function in functions:
    print(columns.parts_of(columns.remember(function)))
"""
CHANGES = [
    ("LIMIT = 5", "LIMIT = 6", 0),
    ("[1.0, 2.0]", "[1.5, 2.0]", 0),
    ("arange(3.0)", "arange(4.0)", 0),
    ("len(text) * helper", "1 + len(text) * helper", 0),
    ("make(3.0)", "make(4.0)", 1),
    ("partly, 2.0", "partly, 2.5", 2),
    ("Scorer(2.0)", "Scorer(3.0)", 3),
    ("shift = 1.0", "shift = 2.0", 3),
    ("UNUSED = 1", "UNUSED = 2", None),
]


def described(here, text, *, typed=False):
    """What the functions of a script are made of, said by a process of their own."""
    import subprocess
    import sys

    (here / "script.py").write_text(text)
    words = ["-c", text] if typed else ["script.py"]
    done = subprocess.run(
        [sys.executable, *words], cwd=here, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("typed", [False, True])
def test_functions_of_a_script_are_known_by_all_that_they_use(here, typed):
    """In another process they are the same; with another constant, closure, attribute or helper they are not."""
    before = described(here, SCRIPT.format(), typed=typed)
    assert before == described(here, SCRIPT.format(), typed=typed) and len(before) == 4
    for old, new, which in CHANGES if not typed else CHANGES[::4]:
        after = described(here, SCRIPT.format().replace(old, new), typed=typed)
        different = [number for number in range(4) if after[number] != before[number]]
        assert different == ([] if which is None else [which]), (old, different)
    edit(here / "helper.py", "1.0", "2.0")
    assert [a != b for a, b in zip(before, described(here, SCRIPT.format(), typed=typed), strict=True)] == [
        True,
        False,
        False,
        False,
    ]


def test_a_run_of_python_refuses_another_function(here, capsys):
    import rlhf

    def make(factor):
        def reward(prompts, completions, **columns):
            return [factor * len(text) for text in completions]

        return reward

    def train(factor):
        return rlhf.train_grpo(
            "model", ["Which ?"], rewards=make(factor), steps=2, output_dir="mine", prompts_per_step=1,
            rollout={"completions": 2, "max_new_tokens": 2}, lora_rank=2,
        )  # fmt: skip

    train(1.0)
    train(1.0)
    with pytest.raises(store.UserError, match=r"column 'reward': reward changed"):
        train(2.0)
    edit(here / "model" / "config.json", "100.0", "200.0")
    with pytest.raises(store.UserError, match=r"model\.name: config\.json changed"):
        train(1.0)
