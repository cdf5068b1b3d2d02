"""Kill workers of a sweep at random instants and count what is lost or doubled:

    python scripts/faults/sweep_kills.py DIRECTORY --trials 24 --workers 3 --kills 10
    python scripts/faults/sweep_kills.py DIRECTORY --trials 8 --workers 2 --kills 6 --population 4

A sweep of tiny GRPO runs is started in DIRECTORY; every few seconds one of its workers (half the time with the run that it
started, else alone) is ended by SIGKILL. At the end every trial must be complete, once, with all steps in its
metrics.jsonl, and best.yaml must give its number again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rlhf.run.config.document import dump, parse
from rlhf.run.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "old_runs"


def prepare(directory: Path, trials: int, workers: int, steps: int, population: int, kills: int) -> Path:
    """A configuration in `directory` that sweeps GRPO on a tiny model and a reward run of made-up people."""
    shutil.copytree(GOLDEN / "inputs", directory / "inputs")
    for run in ("sft", "rewards"):
        shutil.copytree(GOLDEN / "runs" / run, directory / "runs" / run)
    config, _ = parse((GOLDEN / "inputs" / "grpo.yaml").read_text(), "grpo.yaml")
    assert isinstance(config, dict)
    config["train"] = {"steps": steps, "checkpoint_every": 2, "log_every": 1}
    config["output_dir"] = "sweep"
    config["sweep"] = {
        "command": "train grpo",
        "objectives": {"train/reward": "maximize"},
        "trials": trials,
        "workers": workers,
        # Only the workers are to be forgiven; one that trains a population is the process of its trials.
        "retries": kills if population else 0,
        **({"population": population} if population else {}),
        "optimizer.learning_rate": {"log": [1e-4, 1e-1]},
        "kl.coef": {"log": [0.01, 1.0]},
    }
    path = directory / "sweep.yaml"
    path.write_text(dump(config))
    return path


def workers_of(parent: int) -> list[int]:
    """Processes whose parent is the command, and which are workers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if above == parent and b"--worker" in words:
            found.append(int(entry.name))
    return found


def run(
    directory: Path, trials: int, workers: int, kills: int, steps: int, seed: int, population: int
) -> dict:
    config = prepare(directory, trials, workers, steps, population, kills)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlhf"]
    begin = time.monotonic()
    process = subprocess.Popen([*command, "sweep", str(config)], cwd=directory, env=environment)
    chance, done = random.Random(seed), 0
    pause = chance.uniform(3, 20)
    while process.poll() is None:
        time.sleep(0.2)
        pause -= 0.2
        alive = workers_of(process.pid)
        if done < kills and pause <= 0 and alive:
            victim = chance.choice(alive)
            if chance.random() < 0.5:
                os.killpg(victim, signal.SIGKILL)  # a worker's session: its run, too
            else:
                os.kill(victim, signal.SIGKILL)
            done, pause = done + 1, chance.uniform(3, 20)
    rows = [json.loads(line) for line in (directory / "sweep" / "trials.jsonl").read_text().splitlines()]
    result = json.loads((directory / "sweep" / "metrics.json").read_text())
    again = subprocess.run(
        [*command, "train", "grpo", "sweep/best.yaml"], cwd=directory, env=environment, capture_output=True
    )
    whole = list(range(1, steps + 1))
    metrics = {
        row["trial"]: [one["step"] for one in read_metrics(directory / row["run_dir"])] for row in rows
    }
    return {
        "status": process.returncode,
        "seconds": round(time.monotonic() - begin),
        "kills": done,
        "complete": sum(row["state"] == "complete" for row in rows),
        "distinct": len({json.dumps(row["params"], sort_keys=True) for row in rows}),
        "numbers": [row["trial"] for row in rows] == list(range(trials)),
        "torn": [trial for trial, found in metrics.items() if found != whole],
        "stale": [str(path) for path in (directory / "sweep").rglob("*.tmp")],
        "best": result["best"]["values"]["train/reward"],
        "best_again": _tail(directory / "sweep" / "best")
        if again.returncode == 0
        else again.stderr.decode()[-300:],
    }


def _tail(directory: Path) -> float:
    values = [row["train/reward"] for row in read_metrics(directory)]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    for name, default in {
        "trials": 24,
        "workers": 3,
        "kills": 10,
        "steps": 6,
        "seed": 0,
        "population": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    found = run(
        args.directory.resolve(),
        args.trials,
        args.workers,
        args.kills,
        args.steps,
        args.seed,
        args.population,
    )
    print(json.dumps(found, indent=1))
    fine = found["complete"] == args.trials and found["numbers"] and not found["torn"] and not found["stale"]
    again = found["best_again"]
    # A member's program is that of a run alone, to the rounding of float32.
    same = isinstance(again, float) and abs(found["best"] - again) <= (1e-5 if args.population else 0.0)
    sys.exit(0 if fine and same else 1)


if __name__ == "__main__":
    main()
