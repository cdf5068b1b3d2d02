"""More bad inputs for `scripts.faults.bad_inputs`: devices, files beside a model, weights, addresses, functions, records."""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.rlhf.tiny import write_model
from tests.test_bad_input import World, write

Make = Callable[[World], list[str]]
ASK = ("--prompt", "x", "--max-new-tokens", "2")


def beside(world: World, file: str, **change: Any) -> list[str]:
    """A model with keys of one of its JSON files changed."""
    path = write_model(world.root / "model") / file
    held = json.loads(path.read_text()) if path.is_file() else {}
    write(path, json.dumps(held | change))
    return ["generate", "--model", str(path.parent), *ASK]


def weights(world: World, change: Callable[[np.ndarray], np.ndarray], place: int = 0) -> list[str]:
    path = write_model(world.root / "model") / "model.safetensors"
    held = load_file(path)
    name = sorted(held)[place]
    held[name] = change(held[name])
    save_file(held, path)
    return ["generate", "--model", str(path.parent), *ASK]


def device(world: World, kind: str) -> str:
    if kind == "loop.jsonl":
        (world.root / kind).symlink_to(world.root / kind)
    if kind == "zeros.jsonl":
        (world.root / kind).symlink_to("/dev/zero")
    return str(world.root / kind)


def column(world: World, **change: Any) -> list[str]:
    write_model(world.root / "model")
    return world.config("grpo", columns=[world.column("good") | change])


def function(world: World, source: str) -> list[str]:
    write_model(world.root / "model")
    texts = ["item 1", "item 2 item", "7", "item"]
    samples = world.rows([{"prompt": "Which ?", "completion": text} for text in texts], "samples.jsonl")
    argv = world.config("grpo", population={"mean": [0.0], "sd": [1.0], "reference": str(samples)})
    write(world.root / "f.py", source)
    return argv


def gguf(value: bytes, kind: int, key: str = "llama.context_length") -> Make:
    text = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
    kind_key = "general.architecture"
    named = struct.pack("<Q", len(kind_key)) + kind_key.encode() + struct.pack("<IQ", 8, 5) + b"llama"
    file = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + named + text
    return lambda w: ["generate", "--model", str(write(w.root / "m.gguf", file)), *ASK]


def more() -> Iterator[tuple[str, Make]]:
    """Name and preparation of every further input."""
    keys: dict[str, Sequence[tuple[str, Any]]] = {
        "generation_config.json": [("pad_token_id", -7)] + [
            ("eos_token_id", v) for v in ("2", -1, 10**9, [1, "x"], True, 1.5, {})],
        "tokenizer_config.json": [("chorus_template_date", v) for v in ("2025-02-30", 20250131, [])] + [
            ("chat_template", v) for v in ("{{ messages[9].content }}", "{{ raise_exception('\x07') }}",
            "{% block x %}{{ self.x() }}{% endblock %}")],
        "config.json": [("head_dim", 7), ("tie_word_embeddings", "true"), ("sliding_window", {}),
                        ("vocab_size", 7), ("hidden_size", 9e9),
                        ("rope_scaling", {"rope_type": "llama3", "factor": "8"}), ("rope_theta", "1e4"), ("attention_bias", 2),
                        ("num_key_value_heads", -2), ("mlp_bias", True), ("rope_parameters", []), ("hidden_act", "quick")],
    }  # fmt: skip
    for file, changes in keys.items():
        for key, value in changes:
            yield f"beside: {file} {key}={value}", lambda w, f=file, k=key, v=value: beside(w, f, **{k: v})
    spoil: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, x).astype(x.dtype),
        "infinite": lambda x: np.full_like(x, np.inf),
        "integers": lambda x: x.astype(np.int32),
        "another shape": lambda x: np.concatenate([x, x]),
        "one axis more": lambda x: x[None],
    }
    for name, change in spoil.items():
        for place in (0, -1):
            yield f"weights {place}: {name}", lambda w, c=change, p=place: weights(w, c, p)
    for kind in ("loop.jsonl", "zeros.jsonl"):  # a pipe is waited for, as by any tool
        lines: dict[str, Callable[[World, str], list[str]]] = {
            "data check": lambda w, p: ["data", "check", p],
            "data audit": lambda w, p: ["data", "audit", p],
            "train sft config": lambda w, p: ["train", "sft", p],
            "generate --input": lambda w, p: [
                "generate",
                "--model",
                str(write_model(w.root / "model")),
                "--input",
                p,
            ],
            "users update": lambda w, p: w.user("update", "--answers", p),
            "generate --model": lambda w, p: ["generate", "--model", p, *ASK],
            "data.path": lambda w, p: [*w.config("rewards"), f"data.path={p}"],
        }
        for name, make in lines.items():
            yield f"device {kind}: {name}", lambda w, m=make, k=kind: m(w, device(w, k))
    functions = {
        "generator": "def good(completions):\n    yield 1.0\n    raise SystemExit(0)\n",
        "text": "def good(completions):\n    return 'yes!'\n",
        "bytes": "def good(completions):\n    return [b'1'] * len(completions)\n",
        "complex": "def good(completions):\n    return [1j] * len(completions)\n",
        "nested": "def good(completions):\n    return [[1.0]] * len(completions)\n",
        "huge": "def good(completions):\n    return [10**400] * len(completions)\n",
        "a class": "class good:\n    def __init__(self, completions): raise GeneratorExit\n",
        "no arguments": "def good():\n    return [1.0]\n",
        "exit at import": "import os, sys\nsys.exit(0)\n",
        "syntax": "def good(completions:\n",
        "imports nothing": "import no_such_module_of_ours\n",
        "recursion": "def good(completions):\n    return good(completions)\n",
    }
    for name, source in functions.items():
        yield f"function: {name}", lambda w, s=source: function(w, s)
    for name, change in {
        "address with a password": {"kind": "judge", "address": "https://u:secret@example.org/v1", "model": "m", "question": "x"},
        "file address": {"kind": "judge", "address": "file:///etc/passwd", "model": "m", "question": "x"},
        "any variable": {"kind": "judge", "address": "http://127.0.0.1:9", "api_key_variable": "HOME",
                         "model": "m", "question": "x"},
        "name of escapes": {"name": "\x1b[2J"}, "function of a module": {"function": "os:system"},
        "unknown kind": {"kind": "jugde"},
        "function without a name": {"function": "f.py"}, "gate nan": {"gate": float("nan")},
    }.items():  # fmt: skip
        yield f"column: {name}", lambda w, c=change: column(w, **c)
    for name, (value, kind) in {"text": (struct.pack("<Q", 1) + b"x", 8), "bool": (b"\x01", 7),
                                "NaN": (struct.pack("<f", float("nan")), 6),
                                "negative": (struct.pack("<i", -4), 5),
                                "list of lists of text": (struct.pack("<IQIQ", 9, 1, 8, 0), 9)}.items():  # fmt: skip
        for key in ("llama.context_length", "llama.embedding_length", "llama.attention.head_count"):
            yield f"gguf {key}: {name}", gguf(value, kind, key)
