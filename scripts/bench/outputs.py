"""What four policies write for 50 people on 100 prompts: killed, resumed, done again, and how long the report takes.

    python -m scripts.bench.outputs [--people 50] [--prompts 100]

A tiny model, so that nothing but the evaluation itself costs time. The command is killed (SIGKILL) when a third of its work
is written and started again; then a second evaluation of the same policies, and the finished one again.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import rewards
import rlhf
from scripts.bench.machine import RESULTS, report
from tests.rlhf import tiny
from tests.rlhf.api.world import table

TOKENS = 8


def build(root: Path, people: int, prompts: int) -> None:
    """model/, rewards/ of so many people, two policies a/ and b/, prompts.txt."""
    model = tiny.write_model(root / "model")
    prefs = rewards.read(table(people * 4 // 3))  # a fifth of them is held out
    rewards.fit(prefs.training, encoder=rlhf.encoder(str(model)), num_basis=2, dims=4, rounds=3).save(
        root / "rewards"
    )
    fitted = rewards.load(root / "rewards")
    trained = rlhf.train_dpo(model, prefs.training, rewards=fitted, steps=1, learning_rate=1e-2, lora_rank=2)
    rng = np.random.default_rng(0)
    for name, size in (("a", 0.3), ("b", 0.1)):
        leaves, tree = jax.tree.flatten((trained.loaded.params.lora, trained.loaded.params.conditioner))
        moved = [leaf + size * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
        lora, conditioner = jax.tree.unflatten(tree, moved)
        params = trained.loaded.params._replace(lora=lora, conditioner=conditioner)
        loaded = dataclasses.replace(trained.loaded, params=params)
        dataclasses.replace(trained, loaded=loaded).save(root / name)
    words = [f"item {number % 12} ? Which {number} {number // 7} ?" for number in range(prompts)]
    (root / "prompts.txt").write_text("".join(f"{line}\n" for line in words))


def command(root: Path, name: str, people: int) -> list[str]:
    places = [str(root / "a"), f"{root / 'a'}@aggregate", str(root / "b"), "reference"]
    words = ["evaluate", "--policies", *places, "--rewards", str(root / "rewards")]
    words += ["--prompts", str(root / "prompts.txt"), "--people", "extreme", str(people)]
    words += ["--max-new-tokens", str(TOKENS), "--samples", "1", "--output-dir", str(root / name)]
    return [sys.executable, "-m", "rlhf", *words]


def lines(root: Path) -> list[bytes]:
    """Whole lines of completions that are kept."""
    return [
        line
        for file in sorted((root / "cache" / "outputs").glob("*.jsonl"))
        for line in file.read_bytes().split(b"\n")
        if line.endswith(b"}")
    ]


def timed(root: Path, name: str, people: int) -> tuple[dict[str, float], str]:
    """Seconds of a whole command by the clock and of the processor, and what it said."""
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"CHORUS_CACHE": str(root / "cache")}
    done = subprocess.run(
        command(root, name, people), env=environment, capture_output=True, text=True, check=True
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"clock": round(time.perf_counter() - begun, 1), "processor": round(processor, 1)}, done.stderr


def killed(root: Path, people: int, after: int) -> int:
    """Kill the command once so many completions are written; how many were."""
    environment = os.environ | {"CHORUS_CACHE": str(root / "cache")}
    with subprocess.Popen(
        command(root, "out", people), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        while running.poll() is None and len(lines(root)) < after:
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(signal.SIGKILL)
    return len(lines(root))


def measure(root: Path, people: int, prompts: int) -> dict[str, object]:
    build(root, people, prompts)
    total = prompts * (2 * people + 2)
    before = killed(root, people, total // 3)
    kept = lines(root)
    resumed, said = timed(root, "out", people)
    after = lines(root)
    assert after[: len(kept)] == kept or set(kept) <= set(after), "a completion was lost"
    again, _ = timed(root, "other", people)
    assert lines(root) == after, "the second evaluation wrote again"
    nothing, _ = timed(root, "out", people)
    samples = [json.loads(line) for line in (root / "out" / "samples.jsonl").open()]
    same = (root / "other" / "samples.jsonl").read_bytes() == (root / "out" / "samples.jsonl").read_bytes()
    announced = next((line for line in said.splitlines() if "written before" in line), "")
    return {
        "people": json.loads((root / "out" / "metrics.json").read_text())["people"],
        "prompts": prompts,
        "completions": len(samples),
        "written when killed": before,
        "announced after the kill": announced,
        "kept completions lost by the kill": len(set(kept) - set(after)),
        "seconds of the command that resumed": resumed,
        "seconds of a second evaluation, all written before": again,
        "it wrote the same": same,
        "seconds of the finished command again": nothing,
        "report.html, MB": round((root / "out" / "report.html").stat().st_size / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHORUS_CACHE"] = str(Path(folder) / "cache")
        found = measure(Path(folder), args.people, args.prompts)
    report(RESULTS / "outputs.json", found)


if __name__ == "__main__":
    main()
