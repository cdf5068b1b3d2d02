"""One PPO and one GRPO iteration of SmolLM2-135M: Chorus, TRL and Tunix side by side, in turns on the same cores.

    python scripts/bench/rl.py --prompts FILE.jsonl[.gz] --trl ENV/bin/python --tunix ENV/bin/python
        [--cores 1] [--passes 2] [--iterations 3] [--nice 5]
        [--num-prompts 4] [--group-size 4] [--prompt-tokens 32] [--new-tokens 32]

`--prompts` has texts under `prompt`; those of at least `--prompt-tokens` tokens are used, cut to that length. The other
frameworks live in environments of their own, given by their Python:

    pip install torch==2.13.0+cpu trl==1.16.0 peft==0.21.2 transformers==5.23.0
    pip install google-tunix==0.1.7 jax==0.10.2

Equal for all: weights in float32, the prompts of every iteration, rows, completions of full length (no token ends one),
LoRA on every linear layer, temperature 1, AdamW on all rows at once, one epoch, KL to the base, a reward on the host.
One process at a time, A B C A B C: in a pass every side starts, compiles in `WARM_UP` iterations that are kept apart, and
makes `--iterations` more. Wall time on a shared machine is at the mercy of the neighbours, and threads that wait for one
another most of all: on one core (`--cores 1`) the processor time of an iteration says what it costs whatever else runs.
Writes scripts/bench/results/rl.json and rl.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from rewards import jsonl
from rewards.files import read_json
from rlhf.models.load import resolve_model
from scripts.bench import machine
from scripts.bench.rl_table import MAIN, write_table
from scripts.pages import read_numbers, write_numbers

ROOT = Path(__file__).parents[2]
WARM_UP = 2
MODEL = "smollm2-135m"


def sides_of(algorithm: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Processes to compare; the first is what the others are divided by."""
    ours = {"module": "rl_chorus", "python": sys.executable, "parts": 3}
    trl, tunix = {"module": "rl_trl", "python": args.trl}, {"module": "rl_tunix", "python": args.tunix}
    own = {"critic": "separate"} if algorithm == "ppo" else {}
    sides = [{"name": MAIN, **ours, **own}]
    if algorithm == "ppo":
        sides += [
            {"name": "chorus, critic on the policy's states", **ours, "critic": "shared"},
            {"name": "chorus, critic on the policy's states, top 10 layers", **ours, "adapter_layers": 10},
        ]
    else:
        sides += [{"name": "chorus, top 10 layers", **ours, "adapter_layers": 10}]
    sides += [{"name": "trl", **trl}, {"name": "tunix", **tunix}]
    if algorithm == "ppo":
        sides += [{"name": "tunix as installed", **tunix, "as_installed": True}]
    return [side for side in sides if side["python"]]


class Runner:
    """A side's process; see `rl_common.Side`."""

    def __init__(self, side: dict[str, Any], task: dict[str, Any], cores: set[int], nice: int, log: Path):
        self.name, self.error = side["name"], None
        command = ["nice", "-n", str(nice), side["python"], "-u", "-m", f"scripts.bench.{side['module']}"]
        threads = str(len(cores))
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "OMP_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._said, self._heard = self._process.stdin, self._process.stdout
        self._say(json.dumps(task | side))
        self.facts, self.iterations, self.extra = self._hear(), [], {}
        self.peak = self.facts.get("peak_rss_mib")

    def _say(self, line: str) -> None:
        try:
            self._said.write(line + "\n")
            self._said.flush()
        except BrokenPipeError:
            pass

    def _hear(self) -> dict[str, Any]:
        line = self._heard.readline()
        message = json.loads(line) if line else {"error": f"ended with status {self._process.wait()}"}
        self.peak = message.pop("peak_rss_mib", None) or getattr(self, "peak", None)
        self.error = message.get("error")
        return message

    def iterate(self) -> None:
        """One iteration; a side that has failed sits out."""
        if self.error:
            return
        self._say("go")
        message = self._hear()
        if not self.error:
            self.iterations.append(message)

    def close(self) -> None:
        """End the side; what it still has to say (Chorus: the parts of its rollout) is no iteration."""
        self._say("stop")
        line = "" if self.error else self._heard.readline()
        if line:
            said = json.loads(line)
            self.extra = {"parts": said["parts"]} if "parts" in said else {"parts_error": said["error"]}
        self._said.close()
        self._process.wait()

    def result(self) -> dict[str, Any]:
        if self.error:
            return {"name": self.name, "error": self.error}
        return {
            "name": self.name,
            "facts": self.facts,
            "peak_rss_mib": self.peak,
            "warm_up": self.iterations[:WARM_UP],
            "iterations": self.iterations[WARM_UP:],
            **self.extra,
        }


def prompts_of(path: Path, directory: Path, length: int) -> list[str]:
    """Texts that are exactly `length` tokens: the beginnings of those long enough."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    texts = list(dict.fromkeys(row["prompt"] for row in jsonl.rows(path)))
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    cut = [tokenizer.decode(ids[:length]) for ids in encoded if len(ids) >= length]
    return [text for text in cut if len(tokenizer.encode(text, add_special_tokens=False).ids) == length]


def gemm_rates(rows: int, cores: set[int]) -> dict[str, float]:
    """GFLOP/s of the model's MLP shapes at this many rows, NumPy's BLAS on as many threads as cores; and of one thread by
    processor time, which neighbours disturb less. The fastest of five."""
    rng = np.random.default_rng(0)
    x, up = rng.standard_normal((rows, 576), np.float32), rng.standard_normal((576, 1536), np.float32)
    down = rng.standard_normal((1536, 576), np.float32)
    rates = {}
    for name, threads, clock in (
        ("wall", len(cores), time.perf_counter),
        ("processor", 1, time.process_time),
    ):
        with threadpool_limits(threads):
            seconds = []
            for _ in range(6):
                start = clock()
                _ = (x @ up) @ down
                seconds.append(clock() - start)
        rates[name] = 4 * rows * 576 * 1536 / min(seconds[1:]) / 1e9
    return rates


def least_work(algorithm: str, task: dict[str, Any], config: dict[str, int]) -> dict[str, float]:
    """GFLOP that an iteration with adapters on every layer cannot do without; attention and adapters left out.

    A prompt is read once for its group, completions are decoded once; the reference scores all; the update scores, and goes
    back through activations only, since base weights are frozen. PPO: the same three passes for a critic of its own, and
    its values before the update.
    """
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = layers * (2 * width * width + 2 * width * keys + 3 * width * inner)
    head = width * config["vocab_size"]
    old = task["num_prompts"] * task["prompt_tokens"]
    new = task["num_prompts"] * task["group_size"] * task["new_tokens"]
    scored = 2 * layer * (old + new) + 2 * head * new
    work = {"generation": 2 * layer * (old + new) + 2 * head * new, "reference": scored, "update": 2 * scored}
    if algorithm == "ppo":
        work |= {"values": 2 * layer * (old + new), "critic_update": 4 * layer * (old + new)}
    return {name: value / 1e9 for name, value in work.items()}


def block(
    side: dict[str, Any], task: dict[str, Any], cores: set[int], args: argparse.Namespace
) -> dict[str, Any]:
    """Start a side, let it compile, time `args.iterations` iterations, and end it."""
    rows = task["num_prompts"] * task["group_size"] * (task["prompt_tokens"] + task["new_tokens"])
    circumstances = {"gemm_gflop_per_s": gemm_rates(rows, cores), "load_average_1_min": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(args.logs or scratch) / f"{task['algorithm']}-{side['name'].replace(' ', '-')}.log"
        runner = Runner(side, task | {"scratch": scratch}, cores, args.nice, log)
        for _ in range(WARM_UP + args.iterations):
            runner.iterate()
        runner.close()
    return runner.result() | circumstances


def compare(algorithm: str, args: argparse.Namespace, task: dict[str, Any], cores: set[int]) -> Iterator[Any]:
    """A B C A B C …: blocks of all sides, pass after pass. A side that failed is not started again."""
    failed: set[str] = set()
    for number in range(args.passes):
        for side in sides_of(algorithm, args):
            name = side["name"]
            if name in failed:
                continue
            if number:
                side = side | {"parts": 0}
            found: dict[str, Any] = block(side, task | {"algorithm": algorithm}, cores, args) | {
                "pass": number
            }
            if "error" in found:
                failed.add(name)
            totals = [(round(one["total"], 2), round(one["cpu"], 2)) for one in found.get("iterations", [])]
            print(f"{algorithm} {side['name']}: {found.get('error', totals)}", file=sys.stderr, flush=True)
            yield found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--trl", help="Python of an environment with TRL")
    parser.add_argument("--tunix", help="Python of an environment with Tunix")
    parser.add_argument("--algorithms", nargs="+", default=["grpo", "ppo"])
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=3, help="of every side in every pass")
    parser.add_argument("--cores", help="comma-separated; default: those this process may use")
    parser.add_argument("--nice", type=int, default=5, help="lower priority of the sides, 0 to 19")
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--logs", help="directory for what the sides print")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "rl.json")
    args = parser.parse_args()
    if args.nice < 0:  # the sides would starve whatever else runs, and processor time needs no priority
        parser.error(f"--nice {args.nice} is below 0")
    directory = resolve_model(MODEL)
    cores = set(map(int, args.cores.split(","))) if args.cores else os.sched_getaffinity(0)
    task: dict[str, Any] = {
        "model": str(directory),
        "num_prompts": args.num_prompts,
        "group_size": args.group_size,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "learning_rate": 1e-5,
        "beta": 0.04,
        "threads": len(cores),
    }
    prompts = prompts_of(args.prompts, directory, args.prompt_tokens)
    if len(prompts) < args.num_prompts:
        parser.error(
            f"{args.prompts}: {len(prompts)} prompts of {args.prompt_tokens} tokens, {args.num_prompts} are needed"
        )
    config = read_json(directory / "config.json")
    result: dict[str, Any] = {
        "model": MODEL,
        "task": {name: value for name, value in task.items() if name != "model"},
        "different_prompts": len(prompts),
        "nice": args.nice,
        "algorithms": {},
    }
    before = read_numbers(args.out) if args.out.is_file() else {}
    if before.get("task") == result["task"]:  # an algorithm measured earlier stays
        result["algorithms"] = before["algorithms"]
    for algorithm in args.algorithms:
        blocks: list[Any] = []
        result["algorithms"][algorithm] = {
            "least_gflop": least_work(algorithm, task, config),
            "blocks": blocks,
        }
        for found in compare(algorithm, args, task | {"prompts": prompts}, cores):
            blocks.append(found)
            write_numbers(args.out, result)
    machine.report(args.out, result)
    write_table(args.out.with_suffix(".md"), read_numbers(args.out))


if __name__ == "__main__":
    main()
