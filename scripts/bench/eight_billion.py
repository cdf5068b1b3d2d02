"""What `--dry-run --device-gb 80` says of a Llama of eight billion weights: QLoRA on one device, LoRA under fsdp on eight.

    python -m scripts.bench.eight_billion docs/results/eight_billion.md

The model is a directory whose safetensors shards (bfloat16, one a layer) are holes in the file system: 16 GB by their size,
nothing on the disk, since a dry run reads what weights look like and not what they are. Each row is a command of the page.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SHARED = ["model.dtype=bfloat16", "model.remat=true", "train.steps=10", "train.epochs=null"]
DRAWN = ["rollout.prompts_per_step=8", "rollout.completions=8", "rollout.max_new_tokens=256"]
RUNS: dict[str, tuple[str, int, list[str]]] = {
    "DPO, QLoRA, 4 rows": ("dpo", 1, ["model.base=nf4", "loss.kind=dpo", "train.batch_rows=4"]),
    "GRPO, QLoRA, 64 completions of 256 tokens": ("grpo", 1, ["model.base=nf4", *DRAWN]),
    "GRPO, LoRA, the same": ("grpo", 8, ["mesh.fsdp=8", "mesh.data=1", *DRAWN]),
}


def write_model(directory: Path, shape: dict[str, Any]) -> float:
    """Shards whose weights are holes; returns the bytes that they are long."""
    from rlhf.models import layout
    from rlhf.models.config import ModelConfig
    from tests.rlhf import tiny

    tiny.write_model(directory, num_hidden_layers=1)
    raw = json.loads((directory / "config.json").read_text()) | shape
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "model.safetensors").unlink()
    config, total, where = ModelConfig.from_hf(raw), 0, {}
    parts = [("top", [(leaf.name, leaf) for leaf in layout.top_leaves(config)])]
    for layer in range(config.num_layers):
        leaves = layout.layer_leaves(config)
        parts.append((f"layer-{layer}", [(layout.layer_name(layer, leaf), leaf) for leaf in leaves]))
    for name, leaves in parts:
        header, end = {}, 0
        for tensor, leaf in leaves:
            sizes = layout.file_shape(leaf)
            begin, end = end, end + 2 * math.prod(sizes)
            header[tensor] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [begin, end]}
            where[tensor] = f"{name}.safetensors"
        text = json.dumps(header).encode()
        with open(directory / f"{name}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return float(total)


def write_data(folder: Path) -> None:
    words = " ".join(f"item {n % 12}" for n in range(100))
    pairs = [
        {"prompt": f"Which {n} ? {words}", "chosen": words, "rejected": f"item {n} {words}"}
        for n in range(40)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    prompts = [{"prompt": f"Which {n} ? {words}"} for n in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "own.py").write_text(
        "def length(completions):\n    return [len(text) for text in completions]\n"
    )


def words_of(kind: str, more: list[str]) -> list[str]:
    words = ["train", kind, "--model", "model", "--data", "pairs.jsonl" if kind == "dpo" else "prompts.jsonl"]
    words += ["--reward", "own.py:length"] if kind == "grpo" else []
    return [*words, *SHARED, *more, "--dry-run", "--device-gb", "80"]


def judged(folder: Path, words: list[str], devices: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "rlhf", *words, "--json"],
        cwd=folder,
        env=os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(Path.cwd()),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def page(found: dict[str, Any], size: float) -> str:
    lines = [
        "# Eight billion weights, before they run",
        "",
        "<!-- Made by scripts/bench/eight_billion.py. -->",
        "",
        f"A Llama of width {SHAPE['hidden_size']}, {SHAPE['num_hidden_layers']} layers and a vocabulary of "
        f"{SHAPE['vocab_size']:,}, {size / 1e9:.1f} GB in bfloat16, and what",
        "`chorus train … --dry-run --device-gb 80` says a device will hold, in GB. Compiled for CPUs, run on no accelerator: for",
        "sampling XLA for CPUs makes the matrices of all layers before the loop over tokens, and in float32.",
        "",
        "| run | devices | program | weights | trained and optimiser | temporaries | all | fits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, devices, _) in RUNS.items():
        for program, one in found[name]["programs"].items():
            state = (
                one["trained_gb"] + one["optimiser_gb"]
                if "optimiser_gb" in one
                else one.get("trained_gb", 0.0)
            )
            numbers = (one.get("weights_gb", 0.0), state, one["temporaries_gb"], one["total_gb"])
            shown = " | ".join(f"{number:.1f}" for number in numbers)
            fits = "yes" if one["total_gb"] <= 80 else "no"
            lines.append(f"| {name} | {devices} | {program} | {shown} | {fits} |")
    lines += [
        "",
        "The commands; eight devices are simulated (`XLA_FLAGS=--xla_force_host_platform_device_count=8`):",
        "",
    ]
    lines += [f"    chorus {' '.join(words_of(kind, more))}" for kind, _, more in RUNS.values()]
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_model(folder / "model", SHAPE)
        write_data(folder)
        found = {}
        for run, (kind, devices, more) in RUNS.items():
            found[run] = judged(folder, words_of(kind, more), devices)
            print(run, json.dumps(found[run]["programs"]), flush=True)
    Path(sys.argv[1]).write_text(page(found, size), encoding="utf-8")


if __name__ == "__main__":
    main()
