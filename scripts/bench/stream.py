"""How long a preference file of two million rows takes to the first step, and what memory it needs beyond the model.

    python -m scripts.bench.stream [--rows 2000000]

Twice the same command on a tiny model, with many rows and with few: the difference of the two peaks is what the rows cost.
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
            }
            file.write(json.dumps(row) + "\n")


def train(model: Path, data: Path, output: Path) -> dict[str, float]:
    """Seconds from the start of the command to its first step, and the peak of its memory in GB."""
    words = [
        "train",
        "dpo",
        "--model",
        str(model),
        "--data",
        str(data),
        f"output_dir={output}",
        "data.stream=true",
    ]
    words += ["train.steps=3", "train.epochs=null", "train.batch_rows=8"]
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "rlhf", *words], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None, "a pipe"
    first, said = None, []
    for line in child.stderr:
        said.append(line)
        if first is None and re.match(r"dpo step 1/", line):
            first = time.monotonic() - begun
    _, status, used = os.wait4(child.pid, 0)
    if status or first is None:
        raise SystemExit("".join(said))
    return {"seconds_to_first_step": first, "peak_gb": used.ru_maxrss / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    args = parser.parse_args()
    from tests.rlhf import tiny

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = tiny.write_model(place / "model", vocab_size=48)
        write(place / "many.jsonl", args.rows)
        write(place / "few.jsonl", 1000)
        train(model, place / "few.jsonl", place / "compiled")  # programs are remembered
        few = train(model, place / "few.jsonl", place / "a")
        many = train(model, place / "many.jsonl", place / "b")
        size = (place / "many.jsonl").stat().st_size / 1e9
    beyond = many["peak_gb"] - few["peak_gb"]
    result = {"rows": args.rows, "file_gb": size, "few": few, "many": many, "beyond_gb": beyond}
    report(RESULTS / "stream.json", result)


if __name__ == "__main__":
    main()
