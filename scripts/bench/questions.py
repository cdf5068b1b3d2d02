"""How fast is a pool of questions scored, by rule, once compiled?

    python scripts/bench/questions.py [--pool 10000] [--num-basis 8] [--repeats 50]

Every timed call is `questions.choose` as `chorus users ask` makes it, from NumPy to the index, for another person
each time. Writes scripts/bench/results/questions.json.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from rewards.basis.belief import Belief
from rewards.people import acquisition, questions
from scripts.bench import machine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--num-basis", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "questions.json")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    candidates = rng.standard_normal((args.pool, args.num_basis), np.float32)
    prior = Belief.from_cov(np.zeros(args.num_basis, np.float32), np.eye(args.num_basis, dtype=np.float32))
    result: dict = {"pool": args.pool, "num_basis": args.num_basis, "repeats": args.repeats, "rules": {}}
    for rule in acquisition.RULES:
        milliseconds = []
        for repeat in range(args.repeats + 1):
            mean = rng.standard_normal(args.num_basis).astype(np.float32)
            person = Belief.from_precision(
                mean, (1 + rng.random()) * np.eye(args.num_basis, dtype=np.float32), 5
            )
            key = jax.random.key(repeat)
            start = time.perf_counter()
            questions.choose(person, candidates, rule=rule, prior=prior, key=key)
            milliseconds.append(1e3 * (time.perf_counter() - start))
        first, *rest = milliseconds
        result["rules"][rule] = {
            "first_call_ms": first,
            "median_ms": float(np.median(rest)),
            "fastest_ms": min(rest),
            "p90_ms": float(np.quantile(rest, 0.9)),
        }
    machine.report(args.out, result)


if __name__ == "__main__":
    main()
