"""Bad inputs to every command: each must end in one line on stderr and status 2 within seconds, and leave nothing behind.

    python -m scripts.faults.bad_inputs [--only WORD] [--list] [--output docs/results/bad_inputs.md]

A row of `attacks()` is a name and a function that prepares a world (tests/test_bad_input.py) and returns the command.
Every command runs in a process of its own, forked from this one once both packages are imported, with a limit of memory and
of time. What is timed is the command (processor time): neither imports nor the preparation of its world. Prints what is wrong, the slowest,
and how many inputs each command got.
"""

# ruff: noqa: E501  (what is attacked with stands on one line)
import argparse
import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rewards
import rlhf
from rlhf.apps import cli
from scripts.faults.bad_inputs_more import more
from scripts.faults.bad_inputs_new import newer
from scripts.faults.bad_inputs_outside import outside
from tests.rlhf.models.test_chat import HOSTILE
from tests.rlhf.tiny import write_model
from tests.test_bad_input import World, snapshot, write

LIMIT_SECONDS, LIMIT_GIGABYTES = 5.0, 2.0
KILLED_SECONDS, MOST_BYTES = 60.0, 10_000_000_000
Make = Callable[[World], list[str]]


@dataclasses.dataclass
class Outcome:
    """How a command ended: what is wrong with that, and the last line on stderr."""

    wrong: list[str]
    seconds: float = 0.0
    gigabytes: float = 0.0
    last: str = ""
    command: str = ""


def overrides() -> Iterator[tuple[str, Make]]:
    """Numbers and choices of configurations, on the command line."""
    table = {
        "sft": "tune.lora_rank=10000000000 tune.lora_rank=16384 tune.lora_alpha=1e300 train.batch_rows=1000000000000 "
        "train.batch_rows=1000000 train.accumulation_steps=1e18 train.accumulation_steps=-1 train.row_length=1000000000000 "
        "train.steps=1e300 train.steps=999999999999999999999999 train.log_every=0 train.keep_checkpoints=0 "
        "train.checkpoint_every=-5 seed=-1 seed=4294967296 seed=1e300 seed=.nan seed=true seed=0x1ffffffff "
        "optimizer.learning_rate=-1 optimizer.learning_rate=.inf optimizer.learning_rate=1e300 optimizer.beta1=1 "
        "optimizer.eps=0 optimizer.warmup_steps=1000000000000 optimizer.max_grad_norm=0 optimizer.weight_decay=-0.1 "
        "model.adapter_layers=99 model.adapter_layers=0 model.adapter_layers=1000000000000 tune.mode=full,lora "
        "completions=none model.dtype=float16 seed=[1] seed={} train=3 train.steps=[] output_dir= data.path=[]",
        "dpo": "loss.dpo_beta=0 loss.dpo_beta=1e300 loss.label_smoothing=0.5 loss.simpo_gamma=1.5 loss.simpo_gamma=-1 "
        "loss.nll_coef=1e300 rewards=/no/where conditioner.rank=99 conditioner.kind=film rail.eta=0.5 "
        "groups.completions=1 groups.completions=1000000000000 users.generic=1 users.extreme_sd=1e9 loss.kind=ppo "
        "tune={mode:full} optimizer.eps=1e-60 model.adapter_layers=5",
        "ppo": "rollout.top_k=99999999999 rollout.top_k=-1 rollout.prompts_per_step=1000000000000 "
        "rollout={prompts_per_step:100000,completions:10000,max_new_tokens:4} "
        "rollout.completions=10000000 rollout.max_new_tokens=1000000000000 "
        "rollout.max_new_tokens=100000 rollout.temperature=0 rollout.temperature=1e300 rollout.top_p=0 rollout.min_p=2 "
        "rollout.users_per_prompt=0 kl.coef=0 kl.coef=1e300 kl.horizon=5 kl.target_nats=3 kl.stop_nats=0 "
        "algorithm.minibatches=1000000000000 algorithm.minibatches=7 algorithm.epochs=0 algorithm.gae_lambda=1.5 "
        "algorithm.discount=0 critic.hidden=1000000000000 critic.rate=-1 critic.stop_gradient=false weights=[1e300] "
        "weights=[1,2] weights=[.nan] hints={path:x,coef:0} host.parallel=0 host.timeout_seconds=1e300 host.retries=-1 "
        "population={mean:[1e39],sd:[1]} population={mean:[0],sd:[0]} population={mean:[0],sd:[1],prompts:0} "
        "train.sample_rows=0 conditioner.rank=8",
        "grpo": "algorithm.kind=ppo algorithm.relabel=1000000000000 algorithm.relabel_limit=2 algorithm.clip_high=-1 "
        "algorithm.scale_decay=1 rollout.completions=1 rollout.max_prompt_tokens=1000000000000 kl.place=loss",
        "rewards": "fit.num_basis=[2,2] fit.num_basis=[] fit.num_basis=0 fit.num_basis=1000000000 fit.dims=1000000000 "
        "fit.dims=[1,1] fit.dims=-1 fit.ridge=0 fit.ridge=1e300 fit.rounds=1000000000000 fit.steps=0 fit.seed=-1 "
        "fit.seed=1e300 fit.lapse=1 fit.held_out=1 fit.model=howse fit.shrinkage=2 fit.adapt_answers=0 fit.settings={a:1} "
        "evaluation.counts=[-1] evaluation.counts=[1000000000000] evaluation.counts=[] evaluation.counts=[3,1] "
        "evaluation.counts=[.nan] evaluation.seeds=1000000000000 evaluation.models=[howse] data.held_out_people=1 "
        "data.last_choices=0 data.max_people=1 data.min_comparisons=1000000000000 data.split_seed=-1 encoder.layer=7 "
        "encoder.layer=1000000000000 encoder.kind=columns encoder.reference=x data.split=tset",
        "evaluate": "sampling.num_samples=1000000000000 sampling.num_samples=0 sampling.temperature=-1 "
        "sampling.temperature=.nan sampling.max_new_tokens=1000000000000 users.count=1 users.answers=-1 "
        "users.count=1000000000000 users.answers=1e300",
    }
    for kind, words in table.items():
        for word in words.split():
            yield f"{kind} {word}", lambda w, kind=kind, word=word: [*modelled(w).config(kind), word]


def modelled(world: World) -> World:
    write_model(world.root / "model")
    return world


def options() -> Iterator[tuple[str, Make]]:
    """Options of the commands without a configuration."""
    generate = ("generate", "--model", "MODEL", "--prompt", "Which ?")
    lines: list[tuple[str, ...]] = [
        *((*generate, "--max-new-tokens", value) for value in ("0", "-1", "1e3", "1000000000000", "x", "100000")),
        *((*generate, "--temperature", value) for value in ("-1", "nan", "inf", "1e300", "warm")),
        *((*generate, "--top-k", value) for value in ("-1", "99999999999", "1.5", "9" * 5000)),
        *((*generate, "--top-p", value) for value in ("0", "-1", "1.01", "nan")),
        *((*generate, "--min-p", value) for value in ("-0.1", "2", "nan")),
        *((*generate, "--seed", value) for value in ("-1", "4294967296", "1e5", "\u0663")),
        *(("generate", "--policy", "RUN", "--prompt", "x", "--coefficients", c) for c in ("nan,1", "1e300", "", ",", "1;2")),
        *(("data", "plan", "--labels", value) for value in ("1e30", "0", "-5", "1" + "0" * 30, "nan", "1000000000000")),
        *(("data", "plan", "--labels", "6000", "--raters", value) for value in ("0", "-3", "1000000000000", "x")),
        *(("data", "plan", "--labels", "6000", "--num-basis", value) for value in ("0", "-1", "1000000000000")),
        *(("data", "plan", "--labels", "6000", "--dims", value) for value in ("0", "1000000000000000000000")),
        *(("data", "plan", "--labels", "6000", "--spread", value) for value in ("0", "-1", "nan", "inf", "1e300", "1e-300")),
        *(("users", "ask", "ada", "--rewards", "RUN", "--max-questions", v) for v in ("0", "-1", "1000000000000")),
        *(("users", "ask", "ada", "--rewards", "RUN", "--batch", v) for v in ("0", "1000000000000", "x")),
        *(("users", "ask", "ada", "--rewards", "RUN", "--stop-below", v) for v in ("nan", "-1", "2")),
        ("users", "ask", "ada", "--rewards", "RUN", "--rule", "informatoin"),
        *(("users", "edit", "ada", "--rewards", "RUN", "--axis", v) for v in ("taste 1=nan", "taste 1=1e300", "taste 1=", "x=1")),
        ("users", "edit", "ada", "--rewards", "RUN", "--text", "\x00"),
        ("users", "edit", "ada", "--rewards", "RUN", "--text", "w" * 100_000),
        *(("users", "show", name, "--rewards", "RUN") for name in ("", "n" * 5000, "a\x00b", "\x1b[2J")),
        *(("users", "show", name, "--rewards", "RUN") for name in ("../../etc/passwd", "a\udcff")),
        ("data", "fetch", "electrcity"), ("models", "fetch", "smollm3-135m"), ("models", "fetch", "\x00"),
        ("models", "fetch", "x" * 5000), ("config", "describe", "dop"), ("trian", "sft"), ("train", "dop", "x.yaml"),
        ("quickstart", "--seed", "-1"), ("quickstart", "--output-dir", "a\x00b"), ("generate",),
    ]  # fmt: skip
    for line in lines:
        yield " ".join(word[:40] for word in line), lambda w, line=line: placed(w, line)
    path_options = [
        ("generate", "--model", "P", "--prompt", "x"), ("generate", "--policy", "P", "--prompt", "x"),
        ("generate", "--model", "MODEL", "--input", "P"), ("export", "--policy", "P", "--output", "x"),
        ("users", "list", "--rewards", "P"), ("users", "update", "ada", "--rewards", "RUN", "--answers", "P"),
        ("users", "show", "ada", "--rewards", "RUN", "--policy", "P"), ("data", "check", "P"), ("data", "audit", "P"),
        ("train", "sft", "P"), ("evaluate", "P"), ("rewards", "fit", "P"),
        ("rewards", "score", "--rewards", "P", "--input", "x", "--output", "y.jsonl"),
        ("rewards", "score", "--rewards", "RUN", "--input", "P", "--output", "OUT"),
    ]  # fmt: skip
    for line in path_options:
        for word, path in (
            ("NUL", "a\x00b"),
            ("long", "/" + "y" * 5000),
            ("none", "no/where"),
            ("escape", "\x1b[2J\u202e"),
        ):
            name = " ".join(line).replace("P", word)
            yield (
                f"path: {name}",
                lambda w, line=line, path=path: placed(w, [path if x == "P" else x for x in line]),
            )


def placed(world: World, line: Any) -> list[str]:
    """MODEL, RUN and OUT in a command as paths of the world."""
    words = list(line)
    if "MODEL" in words:
        write_model(world.root / "model")
    if "RUN" in words:
        world.reward_run()
    names = {"MODEL": world.root / "model", "RUN": world.root / "run", "OUT": world.out}
    return [str(names.get(word, word)) for word in words]


def documents() -> Iterator[tuple[str, Make]]:
    """Configurations that are no configurations."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(8)
    )
    texts: dict[str, str | bytes] = {
        "billion laughs": bomb, "alias in itself": "seed: &a [*a]\n", "control character": "seed: \x07\n",
        "escape": "seed: \x1b[2J\n", "NUL": "seed: 0\x00\n", "not UTF-8": b"seed: \xff\n", "UTF-16": "seed: 0\n".encode("utf-16"),
        "python tag": "seed: !!python/object/apply:os.system ['true']\n", "deep": "[" * 10_000, "deep map": "{a: " * 5_000,
        "a list": "- 1\n", "text": "hello\n", "empty": "", "tab": "\tseed: 0\n", "key twice": "seed: 0\nseed: 1\n",
        "many digits": "seed: " + "9" * 10_000 + "\n", "long key": "k" * 100_000 + ": 1\n", "key of a list": "? [a]\n: 1\n",
        "two documents": "seed: 0\n---\nseed: 1\n", "merge of itself": "<<: 3\n", "binary": bytes(range(256)),
        "directive": "%YAML 3.0\n---\nseed: 0\n", "int key": "1: 2\n", "null key": "~: 2\n", "unclosed": "seed: 'x\n",
    }  # fmt: skip
    for name, text in texts.items():
        yield f"yaml: {name}", lambda w, text=text: ["train", "sft", str(write(w.root / "a.yaml", text))]
    values = {"alias": "&a [*a]", "bell": "\x07", "surrogate": "\udcff", "tag": "!!python/name:os.system", "deep": "[" * 5000,
              "digits": "9" * 5000, "NUL": "\x00", "long": "x" * 2_000_000, "unclosed": "[1, 2", "two": "'a' b"}  # fmt: skip
    for name, text in values.items():
        yield f"override: {name}", lambda w, text=text: [*w.config("sft"), f"seed={text}"]
        if name in ("surrogate", "NUL", "long", "bell"):
            yield f"path key: {name}", lambda w, text=text: [*w.config("sft"), f"output_dir={text}"]
            yield f"data key: {name}", lambda w, text=text: [*w.config("rewards"), f"data.path={text}"]


def rows() -> Iterator[tuple[str, Make]]:
    """Files of rows, and standard input."""
    changes: dict[str, dict[str, Any]] = {
        "misspelt shown_first": {"shown_frist": "chosen"}, "outcome 7": {"outcome": 7}, "outcome text": {"outcome": "1"},
        "features nan": {"chosen_features": [float("nan"), 0, 0]}, "features 1e300": {"chosen_features": [1e300, 0, 0]},
        "features nested": {"chosen_features": [[1], [2], [3]]}, "features short": {"chosen_features": [1]},
        "features huge int": {"chosen_features": [10**400, 0, 0]}, "features bool": {"chosen_features": [True, 0, 0]},
        "user null": {"user_id": None}, "user list": {"user_id": []}, "prompt number": {"prompt": 3},
        "prompt empty list": {"prompt": []}, "message of a stranger": {"prompt": [{"role": "bot", "content": "x"}]},
        "surrogate": {"prompt": "\ud800"}, "chosen null": {"chosen": None}, "same": {"chosen": "x", "rejected": "x"},
        "timestamp": {"timestamp": "yesterday"}, "timestamp 1e400": {"timestamp": float("inf")},
        "attributes": {"attributes": 3}, "shown_first": {"shown_first": "left"}, "misspelt timestmp": {"timestmp": 1},
        "misspelt item_di": {"chosen_di": "a"}, "misspelt shown_frist": {"shown_frist": "chosen"},
    }  # fmt: skip
    for name, change in changes.items():
        yield f"row: {name}", lambda w, change=change: ["data", "check", str(w.spoiled(**change))]
    raw: dict[str, bytes] = {
        "not UTF-8": b'{"prompt": "\xff"}\n', "binary": bytes(range(256)) * 10, "empty": b"", "blank": b"\n\n\n",
        "array": b"[1, 2, 3]\n", "deep": b'{"a":' * 100_000, "digits": b'{"prompt": ' + b"9" * 10_000 + b"}\n",
        "torn": b'{"prompt": "x', "key twice": b'{"prompt": "a", "prompt": "b"}\n', "NaN": b'{"prompt": NaN}\n',
        "long line": b'{"prompt": "' + b"x" * 3_000_000 + b"\n", "gzip": b"\x1f\x8b" + b"\x00" * 50, "NUL": b"\x00" * 100,
    }  # fmt: skip
    for name, text in raw.items():
        yield f"file: {name}", lambda w, text=text: ["data", "check", str(write(w.root / "r.jsonl", text))]
        yield f"stdin, check: {name}", lambda w, text=text: standard_input(w, text, "data", "check", "-")
        if name not in ("blank", "empty"):
            yield (
                f"answers: {name}",
                lambda w, text=text: w.user("update", "--answers", str(write(w.root / "a.jsonl", text))),
            )
        yield (
            f"score: {name}",
            lambda w, text=text: standard_input(
                w,
                text,
                "rewards",
                "score",
                "--rewards",
                str(w.reward_run()),
                "--input",
                "-",
                "--output",
                str(w.out / "o.jsonl"),
            ),
        )
    for name in ("not UTF-8", "binary", "empty", "blank", "deep", "digits", "key twice", "gzip"):
        yield (
            f"stdin, prompts: {name}",
            lambda w, text=raw[name]: standard_input(
                w, text, *placed(w, ("generate", "--model", "MODEL", "--input", "-"))
            ),
        )
    yield (
        "parquet: text",
        lambda w: ["data", "check", str(write(w.root / "r.parquet", "PAR1" + "x" * 50 + "PAR1"))],
    )
    yield "parquet: empty", lambda w: ["data", "check", str(write(w.root / "r.parquet", ""))]
    yield "file: a directory", lambda w: ["data", "check", str(w.root)]


def standard_input(world: World, text: bytes, *argv: str) -> list[str]:
    path = write(world.root / "standard-input", text)
    world.monkeypatch.setattr("os.dup", lambda _: os.open(path, os.O_RDONLY))
    return list(argv)


def models() -> Iterator[tuple[str, Make]]:
    """Directories and files of models."""
    templates = {
        **HOSTILE, "1/0": "{{ 1/0 }}", "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "power": "{{ 9**9**9 }}", "repeat": "{{ 'x' * 10000000000 }}", "attribute": "{{ nothing.at.all }}", "syntax": "{% for %}",
        "drops": "hello", "import": "{% import 'os' as os %}{{ os }}", "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "include": "{% include '/etc/passwd' %}", "raise": "{{ raise_exception('no\\x1b[2J' ) }}",
"range": "{{ range(10**12)|list|length }}",
    }  # fmt: skip
    for name, template in templates.items():
        yield f"template: {name}", lambda w, template=template: templated(w, template)
    configs: dict[str, Any] = {
        "hidden_size": [0, -1, None, "64", 10**12, 1e300, True], "num_attention_heads": [0, 3, 10**9, None],
        "num_hidden_layers": [0, 10**9, None, "2"], "rms_norm_eps": [-1, 0, None, "x"], "rope_theta": [0, -1, None, "x"],
        "vocab_size": [0, 10**12, None], "eos_token_id": [-5, 10**12, "x"], "hidden_act": ["swish2", 3],
        "max_position_embeddings": [0, -1, 10**18, "x"], "quantization_config": [{"bits": 4}], "model_type": ["gpt9", None, 3],
        "rope_scaling": [{"rope_type": "linear", "factor": 0}, {"rope_type": "yarnn"}, 3], "intermediate_size": [0, 10**12],
    }  # fmt: skip
    for key, values in configs.items():
        for value in values:
            yield f"config.json: {key}={value}", lambda w, key=key, value=value: configured(w, key, value)
    for name, text in {
        "list": "[]",
        "torn": "{",
        "text": "x",
        "NaN": '{"vocab_size": NaN}',
        "deep": "[" * 100_000,
    }.items():
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if (file, name) != ("generation_config.json", "NaN") and (file, name) != (
                "tokenizer_config.json",
                "NaN",
            ):
                yield f"{file}: {name}", lambda w, file=file, text=text: replaced(w, file, text)
    header = {"x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 8]}}
    weights = {
        "header of 2^63": struct.pack("<Q", 2**63) + b"{}", "header of 10^9": struct.pack("<Q", 10**9) + b"{}",
        "no header": b"", "header of 0": struct.pack("<Q", 0), "not JSON": struct.pack("<Q", 4) + b"abcd",
        "huge shape": _safetensors(header),
        "negative": _safetensors({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        "offsets": _safetensors({"x": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}),
        "dtype": _safetensors({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}),
        "deep": struct.pack("<Q", 100_000) + b"[" * 100_000, "empty": _safetensors({}), "pickle": b"\x80\x04\x95" + b"x" * 100,
    }  # fmt: skip
    for name, content in weights.items():
        yield f"safetensors: {name}", lambda w, content=content: replaced(w, "model.safetensors", content)
    for name, content in _gguf_files().items():
        yield f"gguf: {name}", lambda w, content=content: [
            "generate", "--model", str(write(w.root / "m.gguf", content)), "--prompt", "x",
        ]  # fmt: skip


def templated(world: World, template: str) -> list[str]:
    return replaced(world, "chat_template.jinja", template)


def configured(world: World, key: str, value: Any) -> list[str]:
    path = write_model(world.root / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    return ["generate", "--model", str(path.parent), "--prompt", "x", "--max-new-tokens", "2"]


def replaced(world: World, file: str, content: str | bytes) -> list[str]:
    write(write_model(world.root / "model") / file, content)
    return ["generate", "--model", str(world.root / "model"), "--prompt", "x", "--max-new-tokens", "2"]


def _safetensors(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\x00" * 8


def _gguf_files() -> dict[str, bytes]:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def file(*pairs: bytes, tensors: bytes = b"", count: int = 0, keys: int | None = None) -> bytes:
        return (
            b"GGUF"
            + struct.pack("<IQQ", 3, count, len(pairs) if keys is None else keys)
            + b"".join(pairs)
            + tensors
        )

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    kind = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    sizes = [
        number(f"llama.{key}", 8)
        for key in ("embedding_length", "block_count", "feed_forward_length", "context_length")
    ]
    nested = text("a") + struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQI", 9, 1, 4) * 2
    many = text("a") + struct.pack("<IIQ", 9, 4, 2**33) + b"\x00" * 64
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 2**33, 2**20, 0, 0)
    dims = text("token_embd.weight") + struct.pack("<I", 2**31) + b"\x00" * 64
    return {
        "2^33 elements": file(kind, many), "nested arrays": file(kind, nested), "no heads": file(kind, *sizes),
        "zero heads": file(kind, *sizes, number("llama.attention.head_count", 0)),
        "text of 2^60": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
        "2^40 keys": file(kind, keys=2**40), "2^40 tensors": file(kind, count=2**40),
        "huge tensor": file(kind, tensors=tensor, count=1),
        "2^31 dimensions": file(kind, tensors=dims, count=1), "version 99": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        "empty": b"", "magic alone": b"GGUF", "other": b"PK\x03\x04" + b"\x00" * 100,
        "kind 99": file(text("a") + struct.pack("<I", 99)),
        "no kind": file(*sizes), "unknown kind": file(text("general.architecture") + struct.pack("<I", 8) + text("gpt\x1b[2J")),
        "array of 10^7": file(kind, text("a") + struct.pack("<IIQ", 9, 0, 10**7) + b"\x00" * 10**7),
    }  # fmt: skip


def records() -> Iterator[tuple[str, Make]]:
    """Runs and records that somebody has edited."""
    for file in ("basis.json", "population.json", "basis.safetensors"):
        for name, text in {
            "empty": "",
            "list": "[]",
            "text": "x",
            "deep": "[" * 100_000,
            "NUL": "\x00" * 64,
        }.items():
            yield f"{file}: {name}", lambda w, file=file, text=text: edited(w, file, text)
    for name, text in {
        "empty": "",
        "list": "[]",
        "null": "null",
        "deep": "[" * 100_000,
        "number": "1e999",
    }.items():
        yield f"users/ada.json: {name}", lambda w, text=text: edited(w, "users/ada.json", text)


def edited(world: World, file: str, text: str) -> list[str]:
    argv = world.user("show")
    write(world.root / "run" / file, text)
    return ["rewards", "score", "--rewards", argv[-1], "--input", str(world.data), "--output", str(world.out / "o.jsonl"),
            *(("--user", "ada") if "ada" in file else ())] if file != "population.json" else [*argv]  # fmt: skip


def attacks() -> list[tuple[str, Make]]:
    """Every bad input."""
    return [
        *overrides(),
        *options(),
        *documents(),
        *rows(),
        *models(),
        *records(),
        *more(),
        *newer(),
        *outside(),
    ]


def preload() -> None:
    """Import all of both packages, so that children of this process do not: their start-up is not what is timed."""
    for package in (rewards, rlhf):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    importlib.import_module("transformers")


def attempt(make: Make, root: Path) -> Outcome:
    """How a command ends in a process of its own, with limits of memory and time; seconds and bytes of the command alone."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            limit = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, limit))
            outcome = ended(make, root)
        except BaseException as error:
            outcome = Outcome([f"prepared wrong: {type(error).__name__}: {error}"])
        with os.fdopen(writer, "w") as pipe:
            json.dump(dataclasses.asdict(outcome), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        ready, _, _ = select.select([pipe], [], [], KILLED_SECONDS)
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return Outcome(**json.loads(text))
    return Outcome([f"did not end within {KILLED_SECONDS} s" if not ready else f"died of {status}"])


def ended(make: Make, root: Path) -> Outcome:
    """Run the command here and say what is wrong with how it ends."""
    patch = pytest.MonkeyPatch()
    patch.setenv("CHORUS_CACHE", str(root / "cache"))
    patch.chdir(root)
    world = World(root, patch)
    world.offline()
    argv = make(world)
    before, held = snapshot(root), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = io.StringIO(), io.StringIO()
    start = time.process_time()  # of this process, so that a busy machine does not count
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(argv)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome([f"{type(error).__name__}: {str(error)[:200]} at {frame.filename}:{frame.lineno}"])
    seconds = time.process_time() - start
    gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1e6
    said, wrong = err.getvalue(), []
    last = said.rstrip("\n").rpartition("\n")[2]
    if status != 2:
        wrong.append(f"status {status}")
    if not last.startswith("chorus: ") or said.count("chorus: ") != 1:
        wrong.append(f"says {said[-300:]!r}")
    if len(last) > 2100 or any(not letter.isprintable() for letter in last):
        wrong.append(f"{len(last)} characters, {last[:80]!r}")
    if seconds > LIMIT_SECONDS:
        wrong.append(f"{seconds:.1f} s")
    if gigabytes > LIMIT_GIGABYTES:
        wrong.append(f"{gigabytes:.1f} GB")
    after = snapshot(root)
    if after != before or world.out.exists():
        wrong.append(f"left behind {sorted(set(after) ^ set(before)) or 'a change'}")
    return Outcome(wrong, seconds, gigabytes, last, _command(argv))


def _command(argv: list[str]) -> str:
    """Group and subcommand."""
    alone = argv[0] in ("generate", "evaluate", "export", "quickstart", "sweep") or len(argv) == 1
    return argv[0] if alone else " ".join(argv[:2])


def page(commands: collections.Counter[str], right: collections.Counter[str], longest: float) -> str:
    """What is committed: how many inputs every command got."""
    lines = [
        "# Bad inputs",
        "",
        "<!-- Made by scripts/faults/bad_inputs.py. -->",
        "",
        "Numbers out of range, texts that are no YAML, JSON or UTF-8, rows, models, weights, templates, records, functions and",
        "paths that are none, devices, pipes and sockets, names of control characters: each to a command in a process of its",
        "own, with a small model. *Right* means: status 2, one line on standard error that begins with `chorus: ` and holds no",
        f"control character, under {LIMIT_SECONDS:.0f} seconds of processor time, at most {LIMIT_GIGABYTES:.0f} GB, and no file made or changed.",
        "",
        "| command | inputs | right |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{command[:40]}` | {count} | {right[command]} |" for command, count in sorted(commands.items())
    ]
    lines += [
        f"| all | {commands.total()} | {right.total()} |",
        "",
        f"The longest took {longest:.1f} s of it.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--said", action="store_true", help="print what every command says")
    parser.add_argument("--output", type=Path, help="page to write")
    args = parser.parse_args()
    chosen = [(name, make) for name, make in attacks() if args.only in name]
    if args.list:
        print("\n".join(name for name, _ in chosen))
        return 0
    preload()
    failed, slow, commands, right = 0, [], collections.Counter(), collections.Counter()
    for name, make in chosen:
        with tempfile.TemporaryDirectory() as folder:
            outcome = attempt(make, Path(folder))
        slow.append((outcome.seconds, name))
        commands[outcome.command] += 1
        right[outcome.command] += not outcome.wrong
        if args.said:
            print(f"{ascii(name[:100])}: {outcome.last}", flush=True)
        if outcome.wrong:
            failed += 1
            print(f"WRONG {ascii(name[:120])}: {'; '.join(outcome.wrong)}", flush=True)
    for seconds, name in sorted(slow, reverse=True)[:5]:
        print(f"{seconds:5.1f} s  {ascii(name[:100])}", file=sys.stderr)
    print("; ".join(f"{command} {count}" for command, count in sorted(commands.items())))
    print(f"{len(chosen)} bad inputs, {failed} not as they should be")
    if args.output is not None:
        args.output.write_text(page(commands, right, max(slow)[0]), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
