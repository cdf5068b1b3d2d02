"""Two processes on loopback, two simulated devices each, held against one process with one device.

    python -m scripts.bench.hosts_table docs/results/hosts.md

SFT, DPO with people, GRPO with a Python reward function, and an evaluation, each as its command; then training with one of the
processes killed (`kill -9`), what the other says and after how long, and the same run taken up by one process with one device, by
one with eight, and by both again.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.rlhf.run.jobs import Job, ended

KILLED = ["train.steps=40", "train.checkpoint_every=5"]
SIZES = {"1 × 1": 1, "1 × 8": 8}


def words_of(job: Job, kind: str, output: str) -> list[str]:
    if kind != "dpo":
        return job.words(kind, output, "train.steps=3")
    words = job.words("sft", output, "train.steps=3")
    return [
        word.replace("sft", "dpo") if word == "sft" else word for word in words if "row_length" not in word
    ] + [
        "--rewards",
        str(job.folder / "rewards"),
    ]


def apart(job: Job, one: str, two: str) -> tuple[float, float]:
    """The largest difference of a trained number, and of a metric (relative above 1)."""
    a, b = job.weights(one), job.weights(two)
    weights = max(float(np.abs(a[name] - b[name]).max()) for name in a)
    rows = [
        [json.loads(line) for line in (job.folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, two)
    ]
    numbers = [
        abs(x[name] - y[name]) / max(1.0, abs(x[name]))
        for x, y in zip(*rows, strict=True)
        for name in x
        if isinstance(x[name], float) and not name.startswith("perf/")
    ]
    return weights, max(numbers)


def evaluations(job: Job) -> float:
    """The largest difference of a figure of an evaluation."""
    found = []
    for output, several in (("e1", False), ("e2", True)):
        config = {
            "seed": 0,
            "output_dir": str(job.folder / output),
            "data": {"path": str(job.folder / "pairs.jsonl"), "held_out_people": 0.3},
            "rewards": str(job.folder / "rewards"),
            "policy": str(job.folder / "dpo1"),
            "model": {"name": str(job.model)},
            "sampling": {"max_new_tokens": 4, "num_samples": 2},
        }
        path = job.folder / f"{output}.yaml"
        path.write_text(json.dumps(config))
        words = ["evaluate", str(path)]
        for running in job.pair(words) if several else [job.start(words, 1)]:
            ended(running)
        found.append(json.loads((job.folder / output / "metrics.json").read_text()))
    return max(_figures(found[0], found[1]))


def _figures(a: Any, b: Any) -> list[float]:
    if isinstance(a, dict):
        return [x for name in a for x in _figures(a[name], b[name])]
    if isinstance(a, list):
        return [x for one, two in zip(a, b, strict=True) for x in _figures(one, two)]
    return [abs(a - b)] if isinstance(a, float) else []


def killed(job: Job, victim: int) -> dict[str, Any]:
    """What the survivor does, and what the run ends in when it is taken up again."""
    output = f"killed{victim}"
    running = job.pair(job.words("sft", output, *KILLED))
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
        subprocess.run(["cp", "-r", str(job.folder / output), str(job.folder / copy)], check=True)
        ended(job.start(job.words("sft", copy, *KILLED), devices))
        found["apart"][name] = apart(job, "undisturbed", copy)[0]
    for one in job.pair(job.words("sft", output, *KILLED)):
        ended(one)
    found["apart"]["2 × 2"] = apart(job, "undisturbed", output)[0]
    return found


def measure() -> dict[str, Any]:
    import rewards
    import rlhf
    from tests.rlhf.api.world import FIT, table

    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder))
        sizes: dict[str, Any] = FIT
        fitted = rewards.fit(rewards.read(table()), encoder=rlhf.encoder(str(job.model)), **sizes)
        fitted.save(str(Path(folder) / "rewards"))
        found: dict[str, Any] = {"equal": {}, "killed": {}}
        for kind in ("sft", "dpo", "grpo"):
            ended(job.start(words_of(job, kind, f"{kind}1"), 1))
            for one in job.pair(words_of(job, kind, f"{kind}2")):
                ended(one)
            found["equal"][kind] = apart(job, f"{kind}1", f"{kind}2")
            print(kind, found["equal"][kind], flush=True)
        found["equal"]["evaluate"] = (None, evaluations(job))
        print("evaluate", found["equal"]["evaluate"], flush=True)
        for one in job.pair(job.words("sft", "undisturbed", *KILLED)):
            ended(one)
        for victim in (1, 0):
            found["killed"][victim] = killed(job, victim)
            print(victim, found["killed"][victim], flush=True)
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
    lines += [
        "",
        "## One of them killed",
        "",
        "`kill -9` of one process in the middle of a training of forty steps with a checkpoint every five. It is then taken",
        "up from its last checkpoint by other numbers of processes × devices; the difference is that of the final parameters",
        "from a run of both processes that nothing disturbed.",
        "",
        f"| killed | the other ends after | status | {' | '.join(next(iter(found['killed'].values()))['apart'])} |",
        "|---|---|---|---|---|---|",
    ]
    for victim, one in found["killed"].items():
        sizes = " | ".join(f"{value:.1e}" for value in one["apart"].values())
        lines.append(f"| process {victim} | {one['seconds']:.0f} s | {one['status']} | {sizes} |")
    said = next(iter(found["killed"].values()))["line"]
    return "\n".join([*lines, "", "It says:", "", f"    {said}"]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(measure()), encoding="utf-8")
