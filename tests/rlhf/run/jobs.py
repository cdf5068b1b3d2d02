"""Trainings of a tiny model by two processes with simulated devices, as a launcher starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.rlhf import tiny
from tests.rlhf.api.world import FIT, table

LONGEST = 600  # seconds: a busy machine compiles slowly


class Job:
    """A training of a tiny model by two processes with two simulated devices each, or by one process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.model = tiny.write_model(folder / "model", vocab_size=48)
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table()))
        prompts = [{"prompt": f"item {number % 12} ?"} for number in range(16)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        (folder / "own.py").write_text(
            "def spread(completion_ids, log_metric):\n"
            "    found = [len(set(ids)) + 0.1 * (ids[0] % 7) for ids in completion_ids]\n"
            "    log_metric('mean', sum(found) / len(found))\n"
            "    return found\n"
        )

    def fit(self) -> None:
        """Rewards of the people of the pairs."""
        import rewards
        import rlhf

        sizes: dict[str, Any] = FIT
        fitted = rewards.fit(rewards.read(table()), encoder=rlhf.encoder(str(self.model)), **sizes)
        fitted.save(str(self.folder / "rewards"))

    def words(self, kind: str, output: str, *more: str) -> list[str]:
        data = "pairs" if kind == "sft" else "prompts"
        words = ["train", kind, "--model", str(self.model), "--data", str(self.folder / f"{data}.jsonl")]
        words += ["train.epochs=null", "optimizer.learning_rate=0.001", "optimizer.eps=0.001"]
        if kind == "sft":
            words += ["train.batch_rows=8", "train.row_length=16"]
        else:
            words += ["--reward", f"{self.folder / 'own.py'}:spread", "rollout.prompts_per_step=4"]
            words += ["rollout.completions=4", "rollout.max_new_tokens=4"]
        return [*words, *more, f"output_dir={self.folder / output}"]

    def start(
        self, words: list[str], devices: int, module: str = "rlhf", **more: str
    ) -> subprocess.Popen[str]:
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        running = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=os.environ | flags | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(running)
        return running

    def stop(self) -> None:
        """End what is still running."""
        for running in self.started:
            if running.poll() is None:
                running.kill()
                running.communicate()

    def pair(self, words: list[str], devices: int = 2) -> list[subprocess.Popen[str]]:
        given = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
        return [self.start([*words, *given, "--process", str(number)], devices) for number in (0, 1)]

    def in_turn(self, suffix: str, processes: int, **more: str) -> list[subprocess.Popen[str]]:
        """SFT, DPO with people, GRPO with a Python function and an evaluation, by one process or by two (`in_turn.py`)."""
        path = self.folder / f"jobs{suffix}.json"
        path.write_text(json.dumps(self._jobs(suffix)))
        words, module = [str(path)], "tests.rlhf.run.in_turn"
        more = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | more  # much is compiled, and little runs
        if processes == 1:
            return [self.start(words, 1, module, **more)]
        words.append(f"127.0.0.1:{free_port()}")
        return [self.start([*words, str(number)], 2, module, **more) for number in range(processes)]

    def _jobs(self, suffix: str) -> list[tuple[str, dict[str, Any]]]:
        def output(kind: str) -> str:
            return str(self.folder / f"{kind}{suffix}")

        pairs, rewards = str(self.folder / "pairs.jsonl"), str(self.folder / "rewards")
        steps = {"steps": 3}
        shared = {
            "seed": 0,
            "model": {"name": str(self.model)},
            "optimizer": {"learning_rate": 0.001, "eps": 0.001},
        }
        rows = {"data": {"path": pairs}, "train": {**steps, "batch_rows": 8, "log_every": 1}}
        rollout = {"prompts_per_step": 4, "completions": 4, "max_new_tokens": 4}
        column = {"name": "spread", "kind": "function", "function": f"{self.folder / 'own.py'}:spread"}
        prompts = {"path": str(self.folder / "prompts.jsonl")}
        grpo = {"data": prompts, "columns": [column], "rollout": rollout, "kl": {"coef": 0.05}}
        evaluated = {
            "seed": 0,
            "output_dir": output("evaluate"),
            "data": {"path": pairs, "held_out_people": 0.3},
            "rewards": rewards,
            "policy": output("dpo"),
            "model": shared["model"],
            "sampling": {"max_new_tokens": 4, "num_samples": 2},
        }
        sft = {**rows, "train": {**rows["train"], "row_length": 16}}
        return [
            ("sft", shared | sft | {"output_dir": output("sft")}),
            ("dpo", shared | rows | {"output_dir": output("dpo"), "rewards": rewards}),
            ("grpo", shared | grpo | {"output_dir": output("grpo"), "train": steps}),
            ("evaluate", evaluated),
        ]

    def apart(self, one: str, two: str) -> tuple[float, float]:
        """The largest difference of a trained number, and of a metric (relative above 1)."""
        a, b = self.weights(one), self.weights(two)
        assert a.keys() == b.keys()
        rows = [
            [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]
            for run in (one, two)
        ]
        metrics = [
            abs(x[name] - y[name]) / max(1.0, abs(x[name]))
            for x, y in zip(*rows, strict=True)
            for name in x
            if isinstance(x[name], float) and not name.startswith("perf/")
        ]
        return max(float(np.abs(a[name] - b[name]).max()) for name in a), max(metrics)

    def figures_apart(self, one: str, two: str) -> float:
        """The largest difference of a figure of two evaluations (absolute)."""
        a, b = (json.loads((self.folder / name / "metrics.json").read_text()) for name in (one, two))
        return max(_differences(a, b))

    def weights(self, output: str) -> dict[str, np.ndarray]:
        return load_file(self.folder / output / "policy" / "weights.safetensors")


def _differences(a: Any, b: Any) -> list[float]:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [x for name in a for x in _differences(a[name], b[name])]
    if isinstance(a, list):
        return [x for one, two in zip(a, b, strict=True) for x in _differences(one, two)]
    return [abs(a - b)] if isinstance(a, float) else []


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ended(running: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = running.communicate(timeout=LONGEST)
    assert running.returncode == status, said
    return said


def close(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    assert one.keys() == two.keys()
    return all(np.abs(one[name] - two[name]).max() < 1e-5 for name in one)
