"""What every side of the reinforcement-learning benchmark shares; the standard library alone, so that each runs in the
environment of its own framework.

A side is a process that speaks JSON lines with `rl.py`: it reads its task, says when it is ready, and then makes one
iteration for each line it is given. Waiting, it computes nothing, so sides can take turns on the same cores.
"""

import contextlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from typing import Any

REWARDED = "e"
PACKAGES = ("jax", "flax", "torch", "transformers", "peft", "trl", "google-tunix", "qwix")


def reward(completion: str) -> float:
    """A cheap reward on the host: share of the letter e (a number that is not an integer)."""
    return completion.count(REWARDED) / max(len(completion), 1)


def processor_seconds() -> float:
    """Processor time of this process, all threads."""
    used = os.times()
    return used.user + used.system


class Stopwatch:
    """Wall and processor time of one iteration, and wall time at its marks.

    `mark("generation")` says that sampling has ended, `mark("rollout")` that everything before the update has:
    log-probs, reference, values, rewards, advantages.
    """

    def __init__(self):
        self._cpu, self._wall = processor_seconds(), time.perf_counter()
        self.numbers: dict[str, Any] = {}

    def mark(self, name: str) -> None:
        self.numbers[name] = time.perf_counter() - self._wall

    def stop(self) -> dict[str, Any]:
        """The marks, `total` and `cpu`, seconds."""
        self.mark("total")
        return self.numbers | {"cpu": processor_seconds() - self._cpu}


class Side:
    """The process's end of the conversation. As a context it turns an exception into the report {"error": …}."""

    def __init__(self):
        self._started = time.perf_counter()
        self._channel = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what frameworks print goes to the log
        self.task: dict[str, Any] = json.loads(sys.stdin.readline())

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if error is None or kind is SystemExit:
            return False
        import traceback

        traceback.print_exception(error)
        message = (
            str(error).partition("\n")[0].partition(" (/")[0]
        )  # of several lines and places the first part
        self._say({"error": f"{kind.__name__}: {message}"})
        return True

    def _say(self, message: dict[str, Any]) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._channel.write(json.dumps(message | {"peak_rss_mib": peak}) + "\n")

    def ready(self, **facts: Any) -> None:
        """Everything is loaded; nothing has been compiled yet."""
        versions = {}
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        self._say({"ready": time.perf_counter() - self._started, "versions": versions, **facts})

    def wait(self) -> bool:
        """Block until it is this side's turn; False when there are no more iterations."""
        return sys.stdin.readline().strip() == "go"

    def report(self, numbers: dict[str, Any], **shapes: int) -> None:
        """Numbers of one iteration, with rows, prompt_tokens and completion_tokens, which `rl.py` checks."""
        self._say(numbers | shapes)

    def prompts(self, iteration: int) -> list[str]:
        """The different prompts of an iteration, the same ones for every side."""
        texts, count = self.task["prompts"], self.task["num_prompts"]
        start = iteration * count
        return [texts[(start + i) % len(texts)] for i in range(count)]
