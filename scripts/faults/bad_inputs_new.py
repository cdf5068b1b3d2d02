"""Bad inputs to sweeps, launches, `config new`, runs without a file and `evaluate`, and odd files, for `bad_inputs`."""

# ruff: noqa: E501  (what is attacked with stands on one line)
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.rlhf.tiny import write_model
from tests.test_bad_input import World, write

Make = Callable[[World], list[str]]
PLAN = ["data", "plan", "--labels", "100"]


def swept(world: World, *overrides: str, **change: Any) -> list[str]:
    """A sweep over a small reward fit with keys of its section changed."""
    world.config("rewards")
    path = world.root / "rewards.yaml"
    values = yaml.safe_load(path.read_text())
    section = {"command": "rewards evaluate", "objectives": {"evaluation.loss_nats.5": "minimize"}, "trials": 2,
               "fit.ridge": {"log": [0.1, 1.0]}}  # fmt: skip
    values["evaluation"] = {"models": []}
    values["sweep"] = {key: value for key, value in (section | change).items() if value != "gone"}
    write(world.root / "sweep.yaml", yaml.safe_dump(values))
    return ["sweep", str(world.root / "sweep.yaml"), *overrides]


def sweeps() -> Iterator[tuple[str, Make]]:
    changes: dict[str, dict[str, Any]] = {
        "no command": {"command": "gone"}, "a strange command": {"command": "train dop"}, "no objective": {"objectives": {}},
        "objective of escapes": {"objectives": {"\x1b[2J": "minimize"}}, "objective downwards": {"objectives": {"evaluation.loss_nats.5": "down"}},
        "unknown metric": {"objectives": {"evaluation.los_nats.5": "minimize"}}, "trials 0": {"trials": 0}, "trials 1e30": {"trials": 1e30},
        "no budget": {"trials": "gone"}, "hours nan": {"hours": float("nan")}, "hours below 0": {"hours": -1}, "no ranges": {"fit.ridge": "gone"},
        "workers 10^9": {"workers": 10**9}, "retries -1": {"retries": -1}, "sampler seed 2^40": {"sampler_seed": 2**40},
        "log from 0": {"fit.ridge": {"log": [0, 1]}}, "log downwards": {"fit.ridge": {"log": [1, 0.1]}}, "log of one": {"fit.ridge": {"log": [1]}},
        "log of words": {"fit.ridge": {"log": ["a", "b"]}}, "log to inf": {"fit.ridge": {"log": [1, float("inf")]}}, "log of NaN": {"fit.ridge": {"log": [float("nan"), 1]}},
        "uniform 1e300": {"fit.ridge": {"uniform": [1, 1e300]}}, "int of halves": {"fit.rounds": {"int": [1, 2.5]}}, "int with step 0": {"fit.rounds": {"int": [1, 4, 0]}},
        "choice of nothing": {"fit.ridge": {"choice": []}}, "choice of bad values": {"fit.ridge": {"choice": [1, "x"]}}, "choice twice": {"fit.ridge": {"choice": [1, 1]}},
        "out of range at an end": {"fit.ridge": {"log": [1, 1e31]}}, "unknown kind": {"fit.ridge": {"normal": [0, 1]}}, "two kinds": {"fit.ridge": {"log": [1, 2], "int": [1, 2]}},
        "unknown key": {"fit.rigde": {"log": [1, 2]}}, "output_dir": {"output_dir": {"choice": ["a", "b"]}}, "grid of log": {"sampler": "grid"},
        "grid too large": {"sampler": "grid", "trials": "gone", "fit.ridge": "gone", "fit.rounds": {"int": [1, 1000]}, "fit.seed": {"int": [1, 1000]}},
        "cmaes of one": {"sampler": "cmaes"}, "pruner at the end": {"pruner": "median"}, "constraint without a bound": {"constraints": ["evaluation.loss_nats.5"]},
        "constraint of code": {"constraints": ["__import__('os').system('true') <= 1"]}, "constraint nan": {"constraints": ["evaluation.loss_nats.5 <= nan"]},
        "key twice": {"fit": {"ridge": {"log": [1, 2]}}}, "choice of escapes": {"data.user_column": {"choice": ["a\x1b[2J", "b"]}}, "choice of 10^5": {"fit.ridge": {"choice": list(range(1, 200_000))}},
    }  # fmt: skip
    for name, change in changes.items():
        yield f"sweep: {name}", lambda w, change=change: swept(w, **change)
    for words in (
        "sweep.trials=0",
        "sweep.",
        "sweep.trials",
        "sweep.trails=3",
        "fit.ridgee=1",
        "sweep.workers=[1]",
        "sweep={}",
        "output_dir=",
        "sweep.fit.ridge=3",
        "sweep.a b={log: [1, 2]}",
    ):
        yield f"sweep: {words}", lambda w, words=words: swept(w, words)
    yield "sweep: no section", lambda w: ["sweep", *w.config("rewards")[2:]]
    yield "sweep: a section of text", lambda w: ["sweep", w.config("rewards", text="sweep: hello\n")[-1]]
    yield "sweep: --worker of nothing", lambda w: [*swept(w, trials=0), "--worker"]
    yield (
        "sweep: another folder's",
        lambda w: (write(w.root / "x" / "foreign", "x"), swept(w, f"output_dir={w.root / 'x'}"))[1],
    )


def launches() -> Iterator[tuple[str, Make]]:
    for name in ("a/b", "..", ".", "-x", "a b", "x" * 200, "\x1b[2J", "a\nb", "\x00", "$(true)", ";true"):
        yield (
            f"launch --name {name[:20]}",
            lambda w, name=name: ["launch", "local", f"--name={name}", "--", *PLAN],
        )
        yield f"launch status {name[:20]}", lambda w, name=name: ["launch", "status", "--", name]
    for option, values in {
        "--cpus": ("0", "-1", "1.5", "9" * 30), "--devices": ("x", "0"), "--notice": ("-5", "soon"),
        "--memory": ("1G\ntrue", "\x1b"), "--time": ("1:00\n#SBATCH --uid=0",), "--partition": ("a\nb",), "--option": ("--x\ntrue",),
    }.items():  # fmt: skip
        for value in values:
            yield (
                f"launch {option}={value[:20]}",
                lambda w, o=option, v=value: ["launch", "slurm", "--dry-run", f"{o}={v}", "--", *PLAN],
            )
    for words in (["launch", "local", "--", *PLAN], ["dtaa", "plan"], ["train", "dop", "x"], ["data", "plan", "--labels", "x"], ["chorus"],
                  ["train", "grpo", "x.yaml", "columns.0.address=https://u:secret@host/v1"]):  # fmt: skip
        yield (
            f"launch of {' '.join(words)[:40]}",
            lambda w, words=words: ["launch", "local", "--dry-run", "--", *words],
        )
    for asked in ("status", "logs", "cancel"):
        yield f"launch {asked} of nothing", lambda w, asked=asked: ["launch", asked, "first"]
    yield (
        "launch slurm without slurm",
        lambda w: (w.monkeypatch.setenv("PATH", "/nowhere"), ["launch", "slurm", "--", *PLAN])[1],
    )


def short() -> Iterator[tuple[str, Make]]:
    """Runs without a file, and `config new`."""
    starts = [["config", "new", kind] for kind in ("rewards", "sft", "dpo", "ppo", "grpo")]
    starts += [["train", "sft"], ["train", "dpo"], ["train", "ppo"], ["train", "grpo"], ["rewards", "fit"]]
    for start in starts:
        said, new = " ".join(start), start[0] == "config"
        tries: dict[str, tuple[str, ...]] = {
            "nothing": (), "no data": ("--model", "MODEL"), "no model": ("--data", "DATA"), "empty model": ("--model", "", "--data", "DATA"),
            "model of escapes": ("--model", "\x1b[2J", "--data", "DATA"), "data NUL": ("--model", "MODEL", "--data", "a\x00b"), "unknown option": ("--modle", "x"),
            "unknown key": ("--model", "MODEL", "--data", "DATA", "trian.steps=3"), "seed nan": ("--model", "MODEL", "--data", "DATA", "seed=.nan"),
            "output_dir of lines": ("--model", "MODEL", "--data", "DATA", 'output_dir="a\\nb"'), "reward of nothing": ("--model", "MODEL", "--data", "DATA", "--reward", ""),
        }  # fmt: skip
        if not new:
            tries |= {
                "data no/where": ("--model", "MODEL", "--data", "no/where"), "model no/where": ("--model", "no/where", "--data", "DATA"),
                "data a folder": ("--model", "MODEL", "--data", "."), "data a device": ("--model", "MODEL", "--data", "/dev/zero"),
            }  # fmt: skip
        for name, words in tries.items():
            if "--reward" in words and start[-1] not in ("ppo", "grpo"):
                continue
            yield (
                f"short: {said}, {name}",
                lambda w, start=start, words=words: [*start, *with_places(w, words)],
            )
    for output in ("DATA", "no\x00where", "a\nb", "."):
        yield f"short: config new --output {output}", lambda w, output=output: [
            "config", "new", "sft", *with_places(w, ("--model", "m", "--data", "DATA", "--output", output))]  # fmt: skip
    for function in ("f.py", "f.py:", ":f", "f.py:no", "no.py:f", "os:system", "f:g:h", "\x1b:f"):
        yield f"short: --reward {function}", lambda w, function=function: [
            "train", "grpo", *with_places(w, ("--model", "MODEL", "--data", "DATA", "--reward", function))]  # fmt: skip


def with_places(world: World, words: tuple[str, ...]) -> list[str]:
    if "MODEL" in words:
        write_model(world.root / "model")
    return [{"MODEL": str(world.root / "model"), "DATA": str(world.data)}.get(word, word) for word in words]


def evaluations() -> Iterator[tuple[str, Make]]:
    for key in ("policy", "rewards", "data.path", "model.name", "output_dir"):
        for value in ("''", "[]", "3", "'\\x1b'", '"\\e[2J"', '"a\\nb"', "/dev/zero", "no/where"):
            if (key, value) not in (("output_dir", "no/where"),):
                yield f"evaluate {key}={value}", lambda w, k=key, v=value: [*w.config("evaluate"), f"{k}={v}"]
    for word in (
        "sampling.top_p=0",
        "sampling.top_k=-1",
        "sampling.prompts=0",
        "users.seed=-1",
        "seed=.inf",
        "comparison=true",
        "users={}",
        "sampling=3",
    ):
        yield f"evaluate {word}", lambda w, word=word: [*w.config("evaluate"), word]


def odd(world: World, kind: str) -> str:
    """Something under a name of data that is no file."""
    path = world.root / "odd.jsonl"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to(kind)
    return str(path)


def files() -> Iterator[tuple[str, Make]]:
    readers: dict[str, Callable[[World, str], list[str]]] = {
        "data check": lambda w, p: ["data", "check", p], "train sft": lambda w, p: ["train", "sft", p], "sweep": lambda w, p: ["sweep", p],
        "prompts": lambda w, p: ["generate", "--model", str(write_model(w.root / "model")), "--input", p],
        "answers": lambda w, p: w.user("update", "--answers", p), "data.path": lambda w, p: [*w.config("rewards"), f"data.path={p}"],
        "score": lambda w, p: ["rewards", "score", "--rewards", str(w.reward_run()), "--input", p, "--output", str(w.out / "o.jsonl")],
        "evaluate": lambda w, p: ["evaluate", p], "data audit": lambda w, p: ["data", "audit", p],
    }  # fmt: skip
    for kind in ("/dev/urandom", "/dev/null", "/dev/full", "/dev/tty", "/", "socket", "pipe", "sparse"):
        for name, make in readers.items():
            yield f"odd {kind}: {name}", lambda w, make=make, kind=kind: make(w, odd(w, kind))
    for file in (
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ):
        for kind in ("/dev/zero", "pipe", "/"):
            yield f"odd {kind}: {file}", lambda w, file=file, kind=kind: beside(w, file, kind)


def beside(world: World, file: str, kind: str) -> list[str]:
    path: Path = write_model(world.root / "model") / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    return ["generate", "--model", str(world.root / "model"), "--prompt", "x", "--max-new-tokens", "2"]


def newer() -> Iterator[tuple[str, Make]]:
    """Name and preparation of every one."""
    for part in (sweeps, launches, short, evaluations, files):
        yield from part()
