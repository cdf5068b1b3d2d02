"""Hyperband against the full search: the steps that it takes, and what its winner is worth.

    python -m scripts.experiments.hyperband FOLDER --trials 24 --seeds 3

Both search the same values (the random sampler's, which depend on the trial's number alone) for DPO of the tiny model of
tests/golden/old_runs, in populations of eight; so the winner of the pruned search has its full run in the other one, and
the difference of both winners there is what pruning cost. How far apart runs of one configuration are, the winner's own with
other seeds say. FOLDER keeps the sweeps: the same command goes on where it stopped.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.run.config.document import dump, parse
from rlhf.run.metrics import read_metrics
from rlhf.sweep import members, results
from rlhf.sweep.config import Sweep, read_sweep
from rlhf.sweep.study import Study
from scripts.bench.machine import report
from scripts.faults.sweep_kills import GOLDEN, ROOT

OBJECTIVE = "train/loss/total"
STEPS, LEAST = 45, 3
SPACE = {
    "optimizer.learning_rate": {"log": [1e-4, 1.0]},
    "optimizer.weight_decay": {"log": [1e-4, 1.0]},
    "optimizer.max_grad_norm": {"log": [1e-2, 10.0]},
}


def searched(
    folder: Path, name: str, seed: int, section: dict[str, Any], overrides: Sequence[str] = ()
) -> tuple[Sweep, Study]:
    """A sweep, run to its end; `name` is its folder."""
    config, _ = parse((GOLDEN / "inputs" / "dpo.yaml").read_text(), "dpo.yaml")
    assert isinstance(config, dict)
    config |= {
        "seed": seed,
        "output_dir": str(folder / name),
        "track": [],
        "rewards": str(folder / "runs" / "rewards"),
    }
    config["data"]["path"], config["model"]["name"] = (
        str(folder / "inputs/pairs.jsonl"),
        str(folder / "runs/sft"),
    )
    config["groups"], steps = {"completions": 6}, {"steps": STEPS, "checkpoint_every": STEPS, "batch_rows": 8}
    config["train"] |= steps
    config["sweep"] = {
        "command": "train dpo",
        "objectives": {OBJECTIVE: "minimize"},
        "population": 8,
    } | section
    path = folder / f"{name}.yaml"
    path.write_text(dump(config))
    sweep = read_sweep(path, overrides)
    members.work(sweep)
    study = Study(sweep)
    results.write_results(sweep, study)
    return sweep, study


def steps_of(study: Study) -> int:
    """Steps that all trials took together."""
    return sum(read_metrics(study.run_directory(one.number))[-1]["step"] for one in study.trials())


def compared(folder: Path, seed: int, trials: int) -> dict[str, Any]:
    """Both searches of one seed."""
    base = {"sampler": "random", "sampler_seed": seed, "trials": trials, **SPACE}
    full = searched(folder, f"full-{seed}", seed, base)[1]
    pruned = searched(
        folder, f"hyperband-{seed}", seed, base | {"pruner": "hyperband", "prune_after": LEAST}
    )[1]
    [best], [kept] = full.best(), pruned.best()
    values = {one.number: one.values[0] for one in full.trials() if one.state.name == "COMPLETE"}
    fixed = [f"{key}={value}" for key, value in best.params.items()]
    seeds = {"sampler": "grid", "seed": {"choice": [101, 102, 103, 104]}}
    again = searched(folder, f"seeds-{seed}", seed, seeds, fixed)[1]
    own = [one.values[0] for one in again.trials()]
    return {
        "seed": seed,
        "steps": [steps_of(full), steps_of(pruned)],
        "share": steps_of(pruned) / steps_of(full),
        "pruned": sum(one.state.name == "PRUNED" for one in pruned.trials()),
        "winners": [best.number, kept.number],
        "loss": [values[best.number], values[kept.number]],
        "cost": values[kept.number] - values[best.number],
        "sd_of_seeds": float(np.std(own, ddof=1)),
        "median_of_all": float(np.median(list(values.values()))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    folder = args.folder.resolve()
    for part in ("inputs", "runs/sft", "runs/rewards"):
        if not (folder / part).exists():
            shutil.copytree(GOLDEN / part, folder / part)
    os.fsync = lambda descriptor: None  # nobody kills these processes, and disks are slow
    os.chdir(folder)  # the tiny model names its base from there
    found = []
    for seed in range(args.seeds):
        found.append(compared(folder, seed, args.trials))
        print(json.dumps(found[-1]), flush=True)
    report(ROOT / "docs" / "results" / "hyperband.json", {"trials": args.trials, "searches": found})


if __name__ == "__main__":
    main()
