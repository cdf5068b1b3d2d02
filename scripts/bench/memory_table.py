"""What `--dry-run` says a device will hold, against the peak of a real run's memory on this CPU.

    python -m scripts.bench.memory_table docs/results/memory.md

Five runs of a random model of some fifty million weights. A run is a process of its own, whose peak is read (`ru_maxrss`) when
two steps are done; of it the peak of the same run with a tiny model is taken off, which is what Python, JAX and the data need.
Every run is made once before, so that nothing is compiled while it is measured.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16384,
    "max_position_embeddings": 1024,
}
ROWS = ["train.batch_rows=8", "train.steps=3", "train.epochs=null"]
RUNS = {
    "sft, all weights": ("sft", [*ROWS, "tune.mode=full", "train.row_length=256"]),
    "sft, all weights, remat": ("sft", [*ROWS, "tune.mode=full", "train.row_length=256", "model.remat=true"]),
    "sft, LoRA": ("sft", [*ROWS, "train.row_length=256"]),
    "dpo, LoRA": ("dpo", [*ROWS, "loss.kind=dpo"]),
    "grpo, LoRA": (
        "grpo",
        ["train.steps=3", "train.epochs=null", "rollout.prompts_per_step=4", "rollout.completions=8",
         "rollout.max_new_tokens=64", "rollout.max_prompt_tokens=256"],
    ),
}  # fmt: skip


def config_of(kind: str, model: str, folder: Path, words: list[str]) -> Any:
    from rlhf.apps.defaults import resolved

    columns = [{"name": "length", "kind": "function", "function": f"{folder / 'own.py'}:length"}]
    options = {
        "model.name": model,
        "data.path": str(folder / f"{kind}.jsonl"),
        "output_dir": str(folder / "run"),
    }
    return resolved(kind, options | ({"columns": columns} if kind == "grpo" else {}), words)[0]


def run(kind: str, model: str, folder: Path, words: list[str]) -> None:
    """In a process of its own: two steps, then the peak on standard output."""
    from rlhf.run import programs

    programs.remember()
    from rlhf.train import dpo, sft
    from rlhf.train.callbacks import Function
    from rlhf.train.rl import trainer

    def stop(step: int, metrics: object) -> None:
        if step == 2:
            print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6), flush=True)
            os._exit(0)

    config = config_of(kind, model, folder, words)
    {"sft": sft, "dpo": dpo, "grpo": trainer}[kind].run(config, callbacks=[Function(stop)])


def estimate(kind: str, model: str, folder: Path, words: list[str]) -> None:
    """In a process of its own: gigabytes by use, of the program that needs most."""
    from rlhf.train import dry_run

    found = dry_run.run(config_of(kind, model, folder, words), device_gb=1000.0)
    print(json.dumps(max(found["programs"].values(), key=lambda one: one["total_gb"])))


def child(what: str, kind: str, model: Path, folder: Path, words: list[str]) -> Any:
    subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
    command = [
        sys.executable,
        "-m",
        "scripts.bench.memory_table",
        what,
        kind,
        str(model),
        str(folder),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def write_data(folder: Path) -> None:
    """Rows that fill their length."""
    words = [" ".join(f"item {(n * k) % 12}" for k in range(1, 100)) for n in range(64)]
    texts = [{"prompt": f"Which {n} ?", "completion": text} for n, text in enumerate(words)]
    pairs = [
        {"prompt": f"Which {n} ?", "chosen": f"{n} {text}", "rejected": f"item {text}"}
        for n, text in enumerate(words)
    ]
    prompts = [{"prompt": text} for text in words]
    for kind, rows in (("sft", texts), ("dpo", pairs), ("grpo", prompts)):
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(
        "def length(completions):\n    return [float(len(text)) for text in completions]\n"
    )


def measure() -> dict[str, dict[str, float]]:
    from tests.rlhf import tiny

    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        wide = tiny.write_model(folder / "wide", **WIDE)
        small = tiny.write_model(folder / "small", max_position_embeddings=1024, vocab_size=48)
        for title, (kind, words) in RUNS.items():
            said = child("estimate", kind, wide, folder, words)
            peaks = []
            for model in (small, wide):
                child("run", kind, model, folder, words)
                peaks.append(child("run", kind, model, folder, words))
            own = peaks[1] - peaks[0]
            found[title] = said | {
                "measured_gb": own,
                "baseline_gb": peaks[0],
                "apart": said["total_gb"] / own - 1,
            }
            print(title, found[title], flush=True)
    return found


def page(found: dict[str, dict[str, float]]) -> str:
    lines = [
        "# Memory, estimated and measured",
        "",
        "<!-- Made by scripts/bench/memory_table.py. -->",
        "",
        "What `chorus train … --dry-run` says of five runs, and the peak of the same runs on a CPU: `ru_maxrss` after two steps,",
        "less that of the same run with a tiny model. A random Llama of width 512, eight layers, a vocabulary of 16,384; GB.",
        "",
        "| run | estimated | measured | apart | weights | trained | optimiser | temporaries |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, one in found.items():
        uses = [f"{one[f'{use}_gb']:.3f}" for use in ("weights", "trained", "optimiser", "temporaries")]
        lines.append(
            f"| {title} | {one['total_gb']:.3f} | {one['measured_gb']:.3f} | {100 * one['apart']:+.0f} % | {' | '.join(uses)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1] in ("run", "estimate"):
        {"run": run, "estimate": estimate}[sys.argv[1]](
            sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5:]
        )
    else:
        Path(sys.argv[1]).write_text(page(measure()), encoding="utf-8")
