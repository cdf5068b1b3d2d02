"""One accelerator, measured in at most nine minutes: does it compute what a CPU does, and how fast.

    python -m scripts.bench.accelerator [--small] [--minutes 9] [--output scripts/bench/results/accelerator]

Correctness against the CPU of the same machine (logits, three steps of DPO and of PPO on a tiny model), then SmolLM2-135M and
Llama shapes of 1.7 and 8 billion random weights in bfloat16: DPO with LoRA (without and with a conditioner), one GRPO iteration,
decoding at batch 1, 32 and 128, and which sizes fit. Parts that time or memory leaves no room for are named with the reason.
`--small` measures a tiny shape, which any CPU does in a minute: a test of the script, not of the machine. OUTPUT.json holds the
numbers, OUTPUT.md the tables.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf.models.adapters import AdapterSpec
from rlhf.policy.logprobs import sequence_logprobs
from scripts.bench import accelerator_parts as parts
from scripts.bench.machine import RESULTS, report

PEAKS = {  # bfloat16 without sparsity, FLOP/s, as the makers state them
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6": 918e12,
}  # fmt: skip
TOLERANCE = 2e-3
"""Largest difference from the CPU, in float32 of the highest precision, absolute and relative above 1."""


def peak(kind: str) -> float | None:
    """FLOP/s of a card by its name; None where it is not known."""
    return next((value for name, value in PEAKS.items() if name in kind), None)


def correctness() -> dict[str, Any]:
    """The largest differences between this device and the CPU."""
    from tests.rlhf.mesh import cases  # the tiny runs that the meshes are compared on

    found = {"logits": _logits()}
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision("highest"):
        world = cases.World(Path(folder))
        for case in ("dpo/low_rank/lora", "ppo/low_rank/lora"):
            own = world.run(case)
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                other = world.run(case)
            names = [name for name in own if name not in (cases.UNSAID, cases.TEXTS)]
            found[case.split("/")[0]] = max(_apart(own[name], other[name]) for name in names)
    return found | {"equal": max(found.values()) < TOLERANCE, "tolerance": TOLERANCE}


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(b)), initial=0.0))


def _logits() -> float:
    made = parts.model("tiny", AdapterSpec(), dtype="float32")
    rows = jax.tree.map(lambda leaf: leaf[0], parts.pairs(made.config, 2, 32, 16)).rows.packed
    with jax.default_matmul_precision("highest"):
        own = np.asarray(sequence_logprobs(made.graphdef, made.params, rows, None))
        cpu = jax.local_devices(backend="cpu")[0]
        moved = jax.device_put(made.params, cpu)
        with jax.default_device(cpu):
            other = np.asarray(sequence_logprobs(made.graphdef, moved, rows, None))
    return _apart(own, other)


def plan(small: bool, limit: float | None) -> dict[str, Callable[[], dict[str, Any]]]:
    """Parts by name, what matters most first."""
    if small:
        return {
            "correctness": correctness,
            "train tiny": lambda: parts.training("tiny", 2, 64, 2, False, limit),
            "grpo tiny": lambda: parts.grpo("tiny", 2, 2, 8, 8, 1),
            "decode tiny": lambda: parts.decode("tiny", 2, 8, 8, 1),
            "fits tiny": lambda: parts.needed("tiny", 64),
        }
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "correctness": correctness,
        "train smollm2-135m": lambda: parts.training("smollm2-135m", 16, 512, 5, False, limit),
        "train 1.7b": lambda: parts.training("1.7b", 8, 1024, 5, True, limit),
        "train 8b": lambda: parts.training("8b", 4, 1024, 3, True, limit),
        "grpo smollm2-135m": lambda: parts.grpo("smollm2-135m", 16, 8, 128, 128, 2),
        "grpo 1.7b": lambda: parts.grpo("1.7b", 8, 8, 128, 128, 1),
    }
    for name in ("smollm2-135m", "1.7b", "8b"):
        for rows in (1, 32, 128):
            found[f"decode {name} batch {rows}"] = lambda name=name, rows=rows: parts.decode(
                name, rows, 128, 64, 2
            )
    found["grpo 8b"] = lambda: parts.grpo("8b", 4, 4, 128, 64, 1)
    return found | {
        f"fits {name}": lambda name=name: parts.needed(name, 1024) for name in ("8b", "14b", "32b")
    }


def measure(work: dict[str, Callable[[], dict[str, Any]]], minutes: float) -> dict[str, Any]:
    """Part after part until the time is over; what fails says why."""
    begun, found, longest = time.monotonic(), {}, 0.0
    for name, part in work.items():
        left = minutes * 60 - (time.monotonic() - begun)
        if left < max(15.0, 0.7 * longest):  # a part takes about as long as those before
            found[name] = {"left_out": f"{left:.0f} s were left"}
            continue
        started = time.monotonic()
        try:
            found[name] = part()
        except Exception as error:
            text = " ".join(str(error).split())
            reason = (
                "out of memory"
                if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
                else text[:200]
            )
            found[name] = {"left_out": f"{type(error).__name__}: {reason}"}
        jax.clear_caches()
        found[name]["part_seconds"] = time.monotonic() - started
        longest = max(longest, found[name]["part_seconds"])
        print(f"{name}: {found[name]}", flush=True)
    return found


def page(result: dict[str, Any]) -> str:
    """The numbers as tables."""
    lines = [
        f"# {result['card']}",
        "",
        f"JAX {jax.__version__}, {result['minutes']:.1f} minutes of measuring.",
    ]
    if result["small"]:
        lines += ["", "A tiny shape: a test of the script, not of the machine."]
    lines += ["", "| part | measured |", "|---|---|"]
    for name, found in result["parts"].items():
        lines.append(f"| {name} | {', '.join(_words(found)) or '–'} |")
    return "\n".join(lines) + "\n"


def _words(found: dict[str, Any], before: str = "") -> list[str]:
    words = []
    for key, value in found.items():
        name = f"{before}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            words += _words(value, f"{name}: ")
        elif value is not None and key != "part_seconds":
            words.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
    return words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a tiny shape, for a test of the script")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--output", type=Path, default=RESULTS / "accelerator")
    args = parser.parse_args()
    card, begun = jax.devices()[0].device_kind, time.monotonic()
    found = measure(plan(args.small, peak(card)), args.minutes)
    result = {"card": card, "small": args.small, "peak_flops": peak(card), "parts": found}
    result["minutes"] = (time.monotonic() - begun) / 60
    args.output.with_suffix(".md").write_text(page(result), encoding="utf-8")
    report(args.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
