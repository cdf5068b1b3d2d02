"""How long a preference file of two million rows takes to the first step, and what memory it needs beyond the model.

    python -m scripts.bench.stream [--rows 2000000] [--model smollm2-135m]

DPO on a tiny model, without people and on labels of people's own (who chose is read of every row before the first step), and with
`--model` on that one. Each is the same command twice, on many rows and on few: the difference of the peaks is what rows cost.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.bench.machine import RESULTS, report


def write(path: Path, count: int) -> None:
    """Rows of about 350 bytes."""
    with open(path, "w", encoding="utf-8") as file:
        for n in range(count):
            words = " ".join(f"item {(n * k) % 12}" for k in range(1, 16))
            row = {
                "prompt": f"Which {n % 997} ?",
                "chosen": f"{words} {n}",
                "rejected": f"{words} {n + 1} item 3",
                "user_id": f"p{n % 32:02}",  # half of them are people of the fit
            }
            file.write(json.dumps(row) + "\n")


def train(model: str, data: Path, output: Path, more: list[str]) -> dict[str, float]:
    """Seconds from the start of the command to its first step, processor seconds, and the peak of its memory in GB."""
    words = [
        "train",
        "dpo",
        "--model",
        model,
        "--data",
        str(data),
        f"output_dir={output}",
        "data.stream=true",
    ]
    words += ["train.steps=3", "train.epochs=null", "train.batch_rows=8", *more]
    begun = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "rlhf", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None, "a pipe"
    first, said = None, []
    for line in child.stderr:
        said.append(line)
        if first is None and re.match(r"dpo step 1/", line):
            first = time.monotonic() - begun
    _, status, used = os.wait4(child.pid, 0)
    if status or first is None:
        raise SystemExit("".join(said))
    processor = used.ru_utime + used.ru_stime  # of the whole run; fairer on a busy machine
    return {"seconds_to_first_step": first, "processor_seconds": processor, "peak_gb": used.ru_maxrss / 1e6}


def prepare(folder: Path, count: int) -> None:
    """The tiny model, the rewards and the rows."""
    from tests.rlhf.run.jobs import Job

    Job(folder).fit()
    write(folder / "many.jsonl", count)
    write(folder / "few.jsonl", 1000)


def compared(model: str, folder: Path, more: list[str], name: str) -> dict[str, Any]:
    """The same command on few rows and on many."""
    found: dict[str, Any] = {}
    for rows in ("compiled", "few", "many"):  # programs are remembered
        data = folder / ("many.jsonl" if rows == "many" else "few.jsonl")
        found[rows] = train(model, data, folder / f"{name}-{rows}", more)
    del found["compiled"]
    found["beyond_gb"] = found["many"]["peak_gb"] - found["few"]["peak_gb"]
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--model", help="a model to measure besides the tiny one")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.prepare, args.rows)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what is started inherits the peak of its parent.
        words = ["--prepare", name, "--rows", str(args.rows)]
        subprocess.run([sys.executable, "-m", "scripts.bench.stream", *words], check=True)
        tiny, own = str(folder / "model"), ["--rewards", str(folder / "rewards"), "loss.kind=observed"]
        result = {
            "rows": args.rows,
            "file_gb": (folder / "many.jsonl").stat().st_size / 1e9,
            "tiny": compared(tiny, folder, [], "tiny"),
            "tiny, people's own labels": compared(tiny, folder, own, "own"),
        }
        if args.model:
            result[args.model] = compared(args.model, folder, [], "model")
    report(RESULTS / "stream.json", result)


if __name__ == "__main__":
    main()
