"""Two processes on loopback, two simulated devices each, held against one process with one device.

    python -m scripts.bench.hosts_table docs/results/hosts.md

SFT, DPO with people, GRPO with a Python reward function, and an evaluation; then training by 2 processes × 4 devices with one of
them killed (`kill -9`), what the other says and after how long, and the same run taken up by one process with one device, by one
with eight, and by both again. What is done is kept beside the page (OUTPUT.json).
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.pages import write_numbers
from tests.rlhf.run.jobs import Job, ended

KILLED = ["train.steps=40", "train.checkpoint_every=5"]
SIZES = {"1 × 1": 1, "1 × 8": 8}
VICTIMS = (0, 1)
EACH = 4  # devices of each of the two processes


def killed(job: Job, victim: int) -> dict[str, Any]:
    """What the survivor does, and what the run ends in when it is taken up again."""
    output = f"killed{victim}"
    running = job.pair(job.words("sft", output, *KILLED), EACH)
    while not list((job.folder / output / "checkpoints").glob("*/COMPLETE")):
        time.sleep(0.1)
    running[victim].kill()
    begun = time.monotonic()
    said, _ = running[1 - victim].communicate(timeout=120)
    seconds, status = time.monotonic() - begun, running[1 - victim].returncode
    running[victim].communicate()
    line = [one for one in said.splitlines() if one.startswith("chorus: ")][-1]
    found: dict[str, Any] = {"seconds": seconds, "status": status, "line": line, "apart": {}}
    for name, devices in SIZES.items():
        copy = f"{output}-{devices}"
        shutil.copytree(job.folder / output, job.folder / copy)
        ended(job.start(job.words("sft", copy, *KILLED), devices))
        found["apart"][name] = job.apart("undisturbed", copy)[0]
    for one in job.pair(job.words("sft", output, *KILLED), EACH):
        ended(one)
    found["apart"][f"2 × {EACH}"] = job.apart("undisturbed", output)[0]
    return found


def equal(job: Job) -> dict[str, Any]:
    """How far two processes are from one: trained parameters and metrics."""
    for one in [*job.in_turn("1", 1), *job.in_turn("2", 2)]:
        ended(one)
    found: dict[str, Any] = {kind: job.apart(f"{kind}1", f"{kind}2") for kind in ("sft", "dpo", "grpo")}
    return found | {"evaluate": (None, job.figures_apart("evaluate1", "evaluate2"))}


def measure(kept: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder))
        if "equal" not in found:
            job.fit()
            found["equal"] = equal(job)
            write_numbers(kept, found)
            print(found["equal"], flush=True)
        if {"killed 0", "killed 1"} - found.keys():
            for one in job.pair(job.words("sft", "undisturbed", *KILLED), EACH):
                ended(one)
        for victim in VICTIMS:
            if f"killed {victim}" not in found:
                found[f"killed {victim}"] = killed(job, victim)
                write_numbers(kept, found)
                print(found[f"killed {victim}"], flush=True)
        job.stop()
    return found


def page(found: dict[str, Any]) -> str:
    lines = [
        "# Several processes, checked",
        "",
        "<!-- Made by scripts/bench/hosts_table.py. -->",
        "",
        "Two processes on loopback with two simulated devices each against one process with one device: the largest difference",
        "after three steps over trained parameters (absolute), and over all metrics (relative above 1).",
        "",
        "| command | parameters | metrics |",
        "|---|---|---|",
    ]
    for kind, (weights, metrics) in found["equal"].items():
        lines.append(f"| {kind} | {'–' if weights is None else f'{weights:.1e}'} | {metrics:.1e} |")
    victims = [victim for victim in VICTIMS if f"killed {victim}" in found]
    runs = [found[f"killed {victim}"] for victim in victims]
    lines += [
        "",
        "## One of them killed",
        "",
        f"Two processes × {EACH} devices; `kill -9` of one of them in the middle of a training of forty steps with a checkpoint",
        "every five. It is then taken up from its last checkpoint by other numbers of processes × devices; the difference is",
        "that of the final parameters from a run of both processes that nothing disturbed.",
        "",
        f"| killed | the other ends after | status | {' | '.join(runs[0]['apart'])} |",
        "|---|---|---|" + "---|" * len(runs[0]["apart"]),
    ]
    for victim, one in zip(victims, runs, strict=True):
        sizes = " | ".join(f"{value:.1e}" for value in one["apart"].values())
        lines.append(f"| process {victim} | {one['seconds']:.0f} s | {one['status']} | {sizes} |")
    return "\n".join([*lines, "", "It says:", "", f"    {runs[0]['line']}"]) + "\n"


if __name__ == "__main__":
    output = Path(sys.argv[1])
    output.write_text(page(measure(output.with_suffix(".json"))), encoding="utf-8")
