"""Trainings of a tiny model by two processes with simulated devices, as a launcher starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.rlhf import tiny
from tests.rlhf.api.world import table


class Job:
    """A training of a tiny model by two processes with two simulated devices each, or by one process."""

    def __init__(self, folder: Path):
        self.folder = folder
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

    def start(self, words: list[str], devices: int) -> subprocess.Popen[str]:
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            [sys.executable, "-m", "rlhf", *words],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pair(self, words: list[str]) -> list[subprocess.Popen[str]]:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        given = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
        return [self.start([*words, *given, "--process", str(number)], 2) for number in (0, 1)]

    def weights(self, output: str) -> dict[str, np.ndarray]:
        return load_file(self.folder / output / "policy" / "weights.safetensors")


def ended(running: subprocess.Popen[str], status: int = 0) -> str:
    said, _ = running.communicate(timeout=180)
    assert running.returncode == status, said
    return said


def close(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    assert one.keys() == two.keys()
    return all(np.abs(one[name] - two[name]).max() < 1e-5 for name in one)
