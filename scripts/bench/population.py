"""Runs of DPO as members of a population against the same runs one after the other: processor time, clock and memory.

    python -m scripts.bench.population --members 8 --steps 50

Each side runs the real commands in processes of their own: `chorus sweep CONFIG --worker` trains all members in one, then
`chorus train dpo trials/0003.yaml` each of them alone. Both sides begin with no compiled program and keep what they compile, as
the commands do: of the runs alone only the first compiles. Memory is the peak of a process (`ru_maxrss`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

WORDS = "the old town lies on a river and every boat that comes here brings salt wool or news from far away".split()


def write_pairs(path: Path, count: int, words: int) -> None:
    """Pairs of made-up sentences, each completion of so many words."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(WORDS, words))

    rows = [
        {"prompt": f"Say something: {text()}", "chosen": text(), "rejected": text()} for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_sweep(folder: Path, args: argparse.Namespace) -> Path:
    write_pairs(folder / "pairs.jsonl", 64, args.words)
    config = {
        "seed": 0,
        "output_dir": str(folder / "sweep"),
        "data": {"path": str(folder / "pairs.jsonl")},
        "model": {"name": args.model},
        "loss": {"kind": "dpo"},
        "train": {"steps": args.steps, "batch_rows": args.rows, "log_every": 1},
        "track": [],
        "sweep": {
            "command": "train dpo",
            "objectives": {"train/loss/total": "minimize"},
            "sampler": "random",
            "trials": args.members,
            "population": args.members,
            "optimizer.learning_rate": {"log": [1e-5, 3e-4]},
            "loss.dpo_beta": {"log": [0.05, 0.5]},
            "seed": {"int": [0, 99]},
        }
        | ({"population_at_once": args.at_once} if args.at_once else {}),
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def measured(words: list[str], compiled: Path) -> dict[str, float]:
    """Processor seconds, seconds and peak gigabytes of one command."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "rlhf", *words], env=env, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: status {status}")
    seconds = time.perf_counter() - begin
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "seconds": seconds, "gb": used.ru_maxrss / 1e6}


def apart(one: Path, other: Path) -> dict[str, float]:
    """The greatest difference of losses and weights between two run directories."""
    from safetensors.numpy import load_file

    from rlhf.run.metrics import read_metrics

    first, second = (
        np.array([row["train/loss/total"] for row in read_metrics(folder)]) for folder in (one, other)
    )
    weights = [load_file(folder / "policy" / "weights.safetensors") for folder in (one, other)]
    moved = max(float(np.abs(weights[0][name] - weights[1][name]).max()) for name in weights[0])
    return {"loss": float(np.abs(first - second).max()), "weights": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1, help="rows of a step, of two completions each")
    parser.add_argument("--words", type=int, default=8, help="of a completion")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--name", default="population.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_sweep(folder, args)
        together = measured(["sweep", str(path), "--worker"], folder / "compiled-together")
        print("together", together, flush=True)
        alone, differences = [], []
        for number in range(args.members):
            trial, own = folder / "sweep" / "trials" / f"{number:04d}", folder / "alone" / str(number)
            words = ["train", "dpo", f"{trial}.yaml", f"output_dir={own}"]
            alone.append(measured(words, folder / "compiled-alone"))
            differences.append(apart(own, trial))
            print(number, alone[-1], differences[-1], flush=True)
    sums: dict[str, float] = {key: sum(one[key] for one in alone) for key in together}
    from scripts.bench.machine import RESULTS, report

    result: dict[str, Any] = {
        "settings": vars(args),
        "together": together,
        "alone": sums,
        "ratio": {key: together[key] / sums[key] for key in together},
        "apart": {key: max(one[key] for one in differences) for key in differences[0]},
    }
    report(RESULTS / args.name, result)


if __name__ == "__main__":
    main()
