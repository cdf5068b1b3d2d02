"""How much host memory reading a model takes, against its size in bfloat16.

    python -m scripts.bench.loading [--layers 24] [--width 2048] [--mlp 8192] [--vocab 49152] [--kept nf4]

Writes a random Llama of these sizes (as they stand SmolLM2-1.7B's) as bfloat16 shards into a temporary folder, reads it in a
process of its own, and prints the peak of the process's anonymous memory (read every few milliseconds) less what it was before,
and that of all memory, which counts the pages of the files that lie mapped, too. The folder is removed again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

GIGABYTE = 1e9


def write_model(directory: Path, args: argparse.Namespace) -> float:
    """A shard a layer; returns the bytes of all weights."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from rlhf.models import layout
    from rlhf.models.config import ModelConfig
    from tests.rlhf import tiny

    raw = {
        "hidden_size": args.width,
        "intermediate_size": args.mlp,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 64,
        "num_key_value_heads": args.width // 64,
        "vocab_size": args.vocab,
    }
    tiny.write_model(directory, num_hidden_layers=1)
    raw = json.loads((directory / "config.json").read_text()) | raw
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "model.safetensors").unlink()
    config, rng, size, where = ModelConfig.from_hf(raw), np.random.default_rng(0), 0, {}
    parts = [("top", [(leaf.name, leaf) for leaf in layout.top_leaves(config)])]
    for layer in range(config.num_layers):
        leaves = layout.layer_leaves(config)
        parts.append((f"layer-{layer}", [(layout.layer_name(layer, leaf), leaf) for leaf in leaves]))
    numbers = (0.02 * rng.standard_normal(1 << 20, np.float32)).astype(ml_dtypes.bfloat16)
    for name, leaves in parts:
        tensors = {}
        for tensor, leaf in leaves:
            tensors[tensor] = np.resize(numbers, layout.file_shape(leaf))
            size += tensors[tensor].nbytes
            where[tensor] = f"{name}.safetensors"
        save_file(tensors, directory / f"{name}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return float(size)


def memory(name: str) -> float:
    """Bytes of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def load(directory: Path, dtype: str, kept: str | None) -> dict[str, float]:
    """In a process of its own: bytes at the peak, above what Python and JAX take."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from rlhf.models.config import ModelConfig
    from rlhf.models.load import load_params, read_hf_config

    config: Any = dataclasses.replace(ModelConfig.from_hf(read_hf_config(directory)), kept=kept)
    jax.block_until_ready(jnp.zeros(8) + 1)
    before, peak, done = memory("RssAnon"), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, memory("RssAnon"))
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    tree = load_params(directory, config, (config.num_layers,), jnp.dtype(dtype))
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    held = memory("RssAnon") - before
    assert jax.tree.leaves(tree)
    return {"peak": peak - before, "held": held, "with_files": memory("VmHWM") - before, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, size in {"layers": 24, "width": 2048, "mlp": 8192, "vocab": 49152}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kept", default=None)
    parser.add_argument("--child", type=Path, default=None)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(load(args.child, args.dtype, args.kept)))
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        size = write_model(directory, args)
        words = ["--dtype", args.dtype, *(["--kept", args.kept] if args.kept else [])]
        command = [sys.executable, "-m", "scripts.bench.loading", "--child", str(directory), *words]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"bfloat16 size {size / GIGABYTE:.3f} GB, read as {args.kept or args.dtype}")
    for name in ("peak", "held", "with_files"):
        print(f"{name:>10}  {found[name] / GIGABYTE:.3f} GB  {found[name] / size:.3f} of it")
    print(f"   seconds  {found['seconds']:.1f}")


if __name__ == "__main__":
    main()
