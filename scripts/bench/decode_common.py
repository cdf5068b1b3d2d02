"""The sides' end of the conversation with `decode.py`; the standard library alone, for environments of other frameworks."""

import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

VOCABULARY = 49152


def prompts(call: dict[str, int]) -> list[list[int]]:
    """Random token ids [rows][prompt_tokens], the same on every side; none is special."""
    rng = random.Random(call["rows"])
    return [
        [rng.randrange(100, VOCABULARY) for _ in range(call["prompt_tokens"])] for _ in range(call["rows"])
    ]


def serve(load: Callable[[dict[str, Any]], Callable[[list[list[int]], int], int]], *packages: str) -> None:
    """Load, then answer each call with the tokens made and the processor seconds taken.

    Args:
      load: given the task returns (prompts, new tokens) → number of tokens made.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what frameworks print goes to the log
    try:
        generate = load(json.loads(sys.stdin.readline()))
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
        channel.write(json.dumps({"versions": versions}) + "\n")
        for line in sys.stdin:
            call = json.loads(line)
            rows, start = prompts(call), time.process_time()
            made = generate(rows, call["new_tokens"])
            channel.write(json.dumps({"made": made, "cpu": time.process_time() - start}) + "\n")
    except Exception as error:
        channel.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        raise
