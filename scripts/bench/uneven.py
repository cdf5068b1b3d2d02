"""DPO on answers of uneven length: rows per second with `train.length_buckets` 1 and 8, on the same rows.

    python -m scripts.bench.uneven PAIRS.jsonl.gz --pairs 400

PAIRS has the columns prompt, chosen and rejected, as human judgements of MT-bench answers have them. One optimiser step of each
width is timed in processor seconds (compiled, in turn, `--repeats` times); an epoch costs each width's step as often as it
occurs in it. Both sides hold the same rows; `worst` is the largest difference of a completion's reference log-prob.
"""

import argparse
import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rewards.data.read import read_preferences
from rewards.types import Preferences
from rlhf.policy import lengths
from rlhf.policy.store import Base
from rlhf.run.config.load import made
from rlhf.train import dpo_step
from rlhf.train.config import DPOConfig
from rlhf.train.dpo_ready import Ready, material_of, ready
from rlhf.train.length import num_steps
from rlhf.train.sft import open_base
from scripts.pages import write_numbers

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "scripts" / "bench" / "results" / "uneven.json"
BUCKETS = (1, 8)


def config(args: argparse.Namespace, buckets: int) -> DPOConfig:
    values = {
        "seed": 0,
        "output_dir": "nowhere",
        "data": {"path": args.pairs_file},
        "model": {"name": args.model, "remat": True},
        "optimizer": {"learning_rate": 1e-4},
        "loss": {"kind": "dpo"},
        "train": {"epochs": 1, "batch_rows": args.rows, "length_buckets": buckets},
    }
    return made(values, DPOConfig, "uneven", {})


class Side:
    """A run before its first step, and a step for every width that occurs."""

    def __init__(self, config: DPOConfig, prefs: Preferences, base: Base):
        self.run: Ready = ready(config, material_of(config, prefs, base, None, None, None), None)
        self.state = self.run.state
        batches: Any = self.run.batch_of
        self.sizes = lengths.used(self.run.material.data.rows.packed)
        self.count: Counter[int] = Counter()
        self.first: dict[int, int] = {}
        for number in range(num_steps(self.run.config)):
            index = batches.rows(number)
            width = (
                self.sizes.max(axis=0)[0] if config.train.length_buckets == 1 else self._width(config, index)
            )
            self.count[int(width)] += 1
            self.first.setdefault(int(width), number)
        self.seconds: dict[int, list[float]] = {width: [] for width in self.first}

    def _width(self, config: DPOConfig, index: np.ndarray) -> int:
        wide = lengths.divide(self.sizes, config.train.length_buckets)
        return lengths.fitting(wide, self.sizes[index, 0]).nodes

    def step(self, width: int) -> float:
        run = self.run
        batch = run.batch_of(self.first[width])
        began = time.process_time()
        self.state, metrics = dpo_step.step(
            self.state, batch, run.frozen, run.population, run.settings, program=run.program
        )
        jax.block_until_ready((self.state.params, metrics))
        return time.process_time() - began

    def epoch(self) -> float:
        return sum(self.count[width] * float(np.median(each)) for width, each in self.seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs_file", metavar="PAIRS")
    parser.add_argument("--pairs", type=int, default=400, help="the first so many comparisons")
    parser.add_argument("--rows", type=int, default=4, help="pairs a step")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    prefs = read_preferences(args.pairs_file, "train", people=False)
    prefs = prefs.select(np.arange(prefs.num_comparisons) < args.pairs)
    one = config(args, 1)
    base = open_base(one)
    sides = [Side(dataclasses.replace(one, train=config(args, n).train), prefs, base) for n in BUCKETS]
    references = [side.run.material.data.ref_logprobs for side in sides]
    worst = float(np.max(np.abs(np.asarray(references[0]) - np.asarray(references[1]))))
    for turn in range(args.repeats + 1):  # the first compiles
        for side in sides:
            for width in side.first:
                seconds = side.step(width)
                if turn:
                    side.seconds[width].append(seconds)
                print(f"turn {turn}, {width} tokens: {seconds:.2f} s", flush=True)
    num_rows = len(sides[0].sizes)
    result = {
        "pairs": num_rows,
        "rows_a_step": args.rows,
        "mean_tokens": float(sides[0].sizes[:, 0].mean()),
        "longest": int(sides[0].sizes[:, 0].max()),
        "worst_logprob_difference_nats": worst,
        "sides": {
            str(n): {
                "epoch_processor_seconds": side.epoch(),
                "rows_per_processor_second": sum(side.count.values()) * args.rows / side.epoch(),
                "steps_by_width": {str(width): side.count[width] for width in sorted(side.count)},
                "seconds_by_width": {str(width): side.seconds[width] for width in sorted(side.count)},
            }
            for n, side in zip(BUCKETS, sides, strict=True)
        },
        "ratio": sides[0].epoch() / sides[1].epoch(),
    }
    print(result)
    write_numbers(args.out, result)


if __name__ == "__main__":
    main()
