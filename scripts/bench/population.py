"""Runs of DPO as members of a population against the same runs one after the other: processor time, clock and memory.

    python -m scripts.bench.population --members 8 --steps 50 --adapter-layers 6 --folder FOLDER

Pairs are those of electricity contracts (about 70 tokens with their prompt). What was measured stands in FOLDER/measured.jsonl:
the same command goes on after the last run that ended.

Each side runs the real commands in processes of their own: `chorus sweep CONFIG --worker` trains all members in one, then
`chorus train dpo trials/0003.yaml` each of them alone. Both sides begin with no compiled program and keep what they compile, as
the commands do: of the runs alone only the first compiles. Memory is the peak of a process (`ru_maxrss`).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rewards.data.read import read_preferences


def write_pairs(folder: Path, count: int) -> Path:
    """The first pairs of the electricity contracts, as the pair of one person each."""
    path = folder / "pairs.jsonl"
    prefs = read_preferences("electricity")
    kept = []
    for pair in zip(prefs.chosen[:count], prefs.rejected[:count], strict=True):
        chosen, rejected = (prefs.item_text[item] for item in pair)
        prompt = prefs.prompts[prefs.item_prompt[pair[0]]]
        kept.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return path


def write_sweep(folder: Path, args: argparse.Namespace) -> Path:
    config = {
        "seed": 0,
        "output_dir": str(folder / "sweep"),
        "data": {"path": str(write_pairs(folder, args.pairs))},
        "model": {"name": args.model, "adapter_layers": args.adapter_layers},
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


def kept(folder: Path, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured under this name, now or in an earlier session."""
    path = folder / "measured.jsonl"
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in map(json.loads, known):
        if line["name"] == name:
            return line["found"]
    found = measure()
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "found": found}) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=1, help="rows of a step, of two completions each")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapter-layers", type=int, help="top layers with adapters; default: all")
    parser.add_argument("--at-once", type=int)
    parser.add_argument("--folder", type=Path, required=True, help="keeps the runs; a new one begins anew")
    parser.add_argument("--name", default="population.json")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = write_sweep(folder, args)

    def all_of_them() -> dict[str, float]:
        shutil.rmtree(folder / "sweep", ignore_errors=True)
        return measured(["sweep", str(path), "--worker"], folder / "compiled-together")

    together = kept(folder, "together", all_of_them)
    print("together", together, flush=True)
    alone = []
    for number in range(args.members):
        trial, own = folder / "sweep" / "trials" / f"{number:04d}", folder / "alone" / str(number)

        def one(trial: Path = trial, own: Path = own) -> dict[str, Any]:
            shutil.rmtree(own, ignore_errors=True)
            words = ["train", "dpo", f"{trial}.yaml", f"output_dir={own}"]
            return measured(words, folder / "compiled-alone") | {"apart": apart(own, trial)}

        alone.append(kept(folder, str(number), one))
        print(number, alone[-1], flush=True)
    sums: dict[str, float] = {key: sum(one[key] for one in alone) for key in together}
    from scripts.bench.machine import RESULTS, report

    result: dict[str, Any] = {
        "settings": {key: value for key, value in vars(args).items() if key != "folder"},
        "together": together,
        "alone": sums,
        "each_alone": [{key: one[key] for key in together} for one in alone],
        "ratio": {key: together[key] / sums[key] for key in together},
        "apart": {key: max(one["apart"][key] for one in alone) for key in ("loss", "weights")},
    }
    report(RESULTS / args.name, result)


if __name__ == "__main__":
    main()
