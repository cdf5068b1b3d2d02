"""Whether a change made training slower on one core: the same trainings by two checkouts, in turns.

    git worktree add ../older COMMIT
    taskset -c 0 python -m scripts.bench.before_after ../older [--model smollm2-135m] [--rounds 5] [--out FILE.json]

SFT, DPO without people and GRPO with a Python reward function, each a process of its own in either checkout, older and newer in
turns. Of a run counts the median time of a step after the first two, which compile; the ratio newer / older is that of each
round, and the median over rounds is what is said. Above 1, the newer is slower.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.bench.machine import RESULTS, report

STEPS, WARM = 8, 2


def configurations(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    """Values of each run, in keys that both checkouts know."""
    words = " ".join(f"item {n % 12}" for n in range(40))
    rows = [{"prompt": f"Which {n} ?", "chosen": f"{words} {n}", "rejected": f"item {n}"} for n in range(64)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row | {"user_id": "a"}) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows)
    )
    (folder / "own.py").write_text(
        "def length(completions):\n    return [float(len(c)) for c in completions]\n"
    )
    shared = {"seed": 0, "model": {"name": model}, "optimizer": {"learning_rate": 1e-4}}
    train = {"steps": STEPS, "log_every": 1, "batch_rows": 8}
    column = {"name": "length", "kind": "function", "function": f"{folder / 'own.py'}:length"}
    return {
        "sft": {
            **shared,
            "data": {"path": str(folder / "pairs.jsonl")},
            "train": {**train, "row_length": 128},
        },
        "dpo": {
            **shared,
            "data": {"path": str(folder / "pairs.jsonl")},
            "loss": {"kind": "dpo"},
            "train": train,
        },
        "grpo": {
            **shared,
            "data": {"path": str(folder / "prompts.jsonl")},
            "columns": [column],
            "kl": {"coef": 0.05},
            "rollout": {"prompts_per_step": 4, "completions": 4, "max_new_tokens": 16},
            "train": {"steps": STEPS, "log_every": 1},
        },
    }


def step_seconds(checkout: Path, kind: str, values: dict[str, Any], output: Path) -> float:
    """Median seconds of a step of one run."""
    file = output.with_suffix(".yaml")
    file.write_text(json.dumps(values | {"output_dir": str(output)}))
    done = subprocess.run(
        [sys.executable, "-m", "rlhf", "train", kind, str(file)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {kind}: {done.stderr[-2000:]}")
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(seconds_of(step) for step in steps[WARM:])


def seconds_of(step: dict[str, float]) -> float:
    """A step's time; supervised and preference training say tokens a second, of steps that are alike."""
    if "perf/step_seconds" in step:
        return step["perf/step_seconds"]
    return 1.0 / step["perf/tokens_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("older", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="sft,dpo,grpo")
    parser.add_argument("--out", type=Path, default=RESULTS / "before_after.json")
    args = parser.parse_args()
    sides = {"older": args.older.resolve(), "newer": Path.cwd()}
    ratios: dict[str, list[float]] = {kind: [] for kind in args.kinds.split(",")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = configurations(folder, args.model)
        for turn in range(args.rounds):
            for kind, found in ratios.items():
                times = {
                    side: step_seconds(checkout, kind, values[kind], folder / f"{kind}-{side}-{turn}")
                    for side, checkout in sides.items()
                }
                found.append(times["newer"] / times["older"])
                print(turn, kind, times, flush=True)
    middle = {kind: statistics.median(found) for kind, found in ratios.items()}
    report(args.out, {"model": args.model, "newer_over_older": middle, "rounds": ratios})


if __name__ == "__main__":
    main()
