"""The benchmark's numbers as a page: medians and ranges over all passes, ratios within a pass, and the least work.

python -m scripts.bench.rl_table scripts/bench/results/rl.json      # writes rl.md beside it again
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from rewards.files import write_text
from scripts.pages import read_numbers

MAIN = "chorus"
LENGTHS = ("prompt_tokens", "new_tokens")
EXPECTED = ("rows", "prompt_tokens", "completion_tokens")


def write_table(path: Path, result: dict[str, Any]) -> None:
    """Write the page of `rl.json`, after `check`."""
    check(result)
    task, around = result["task"], result["circumstances"]
    rows = task["num_prompts"] * task["group_size"]
    blocks = [block for found in result["algorithms"].values() for block in found["blocks"]]
    loads = [block["load_average_1_min"] for block in blocks]
    lines = [
        "# One iteration of GRPO and PPO, side by side",
        "",
        f"{result['model']}, float32, {rows} rows ({task['num_prompts']} prompts of {task['prompt_tokens']} tokens × "
        f"{task['group_size']} completions of {task['new_tokens']}), LoRA of rank {task['lora_rank']} on every linear layer, "
        "one epoch, one optimiser step, KL to the base, the same reward on the host. "
        f"Cores: {task['threads']}; one process at a time; load average {min(loads):.1f} to {max(loads):.1f} "
        f"({around['cores']} cores), priority {result['nice']}; {around['date'][:10]}. " + _versions(blocks),
        "",
        "Medians of all iterations after two to warm up, in brackets the least and the most. **Processor seconds** are what "
        "an iteration costs; wall time includes waiting for the neighbours on the machine. `× chorus` compares processor "
        "seconds, in brackets the ratio in every pass: above 1, Chorus is faster. Rollout is everything before the "
        "update: sampling, log-probs, reference, values, reward, advantages.",
        "",
        "The completions of a prompt stand side by side. Chorus computes their prompt once, TRL and Tunix once for each; the "
        "least work below counts it once.",
        "",
        "For PPO, `chorus` has a critic with adapters of its own, as Tunix has; a critic on the policy's states "
        "is less work, and so are adapters on the top layers alone: those rows compare choices, not speed. `tunix` runs with "
        "the rotary θ of the model and, for PPO, an output head and an argument that its Llama class lacks; its PPO drops the "
        "fractions of rewards (`scripts/bench/rl_tunix.py`).",
    ]
    for algorithm, found in result["algorithms"].items():
        lines += ["", f"## {algorithm.upper()}", "", *_table(found["blocks"]), "", *_least(found)]
    write_text(path, "\n".join(lines) + "\n")


def _table(blocks: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| side | processor s | × chorus | wall s | rollout wall s | update wall s | peak RSS MiB | first, processor s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(block["name"] for block in blocks):
        own = [block for block in blocks if block["name"] == name]
        if any("error" in block for block in own):
            error = next(block["error"] for block in own if "error" in block)
            lines.append(f"| {name} | does not run: `{error}` | | | | | | |")
            continue
        every = [one for block in own for one in block["iterations"]]
        ratios = [median_cpu(block) / median_cpu(_main(blocks, block["pass"])) for block in own]
        cells = [
            _spread([one["cpu"] for one in every]),
            "1"
            if name == MAIN
            else f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})",
            _spread([one["total"] for one in every]),
            _spread([one["rollout"] for one in every]),
            _spread([one["total"] - one["rollout"] for one in every]),
            f"{max(block['peak_rss_mib'] for block in own):.0f}",
            f"{statistics.median(block['warm_up'][0]['cpu'] for block in own):.1f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def check(result: dict[str, Any]) -> None:
    """Every iteration did the work that was asked for, with the same model and as many trained weights.

    Raises:
      ValueError: a side did something else, so its time says nothing.
    """
    task = result["task"]
    asked = dict(
        zip(
            EXPECTED, (task["num_prompts"] * task["group_size"], *(task[key] for key in LENGTHS)), strict=True
        )
    )
    blocks = [block for found in result["algorithms"].values() for block in found["blocks"]]
    ours = next(block for block in blocks if block["name"] == MAIN)["facts"]
    for block in blocks:
        for one in block.get("iterations", []):
            if any(one[key] != asked[key] for key in EXPECTED):
                raise ValueError(f"{block['name']}: an iteration of other shapes than {asked}: {one}")
        facts = block.get("facts", ours)
        if abs(facts["prompt_logprob"] - ours["prompt_logprob"]) > 1e-3:
            raise ValueError(
                f"{block['name']}: another model, {facts['prompt_logprob']} instead of {ours['prompt_logprob']}"
            )
        if "layers" not in block["name"] and facts["trained_parameters"] != ours["trained_parameters"]:
            raise ValueError(f"{block['name']}: trains {facts['trained_parameters']} weights")


def _main(blocks: list[dict[str, Any]], number: int) -> dict[str, Any]:
    return next(block for block in blocks if block["name"] == MAIN and block["pass"] == number)


def median_cpu(block: dict[str, Any]) -> float:
    """Processor seconds of the middle iteration of a block."""
    return statistics.median(one["cpu"] for one in block["iterations"])


def _versions(blocks: list[Any]) -> str:
    """Of every framework's environment, each once."""
    found = {}
    for block in blocks:
        if "facts" in block:
            found.setdefault(block["name"].split()[0].rstrip(","), block["facts"]["versions"])
    kept = {
        "chorus": ("jax", "flax"),
        "trl": ("trl", "torch", "transformers"),
        "tunix": ("google-tunix", "jax"),
    }
    return (
        "; ".join(
            f"{name}: "
            + ", ".join(f"{part} {version}" for part, version in versions.items() if part in kept[name])
            for name, versions in found.items()
        )
        + "."
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _least(found: dict[str, Any]) -> list[str]:
    """What the hardware could do at best, and the parts of Chorus's own rollout."""
    work, total = found["least_gflop"], sum(found["least_gflop"].values())
    own = [block for block in found["blocks"] if block["name"] == MAIN]
    rate = statistics.median(block["gemm_gflop_per_s"]["processor"] for block in own)
    taken = statistics.median(one["cpu"] for block in own for one in block["iterations"])
    parts = ", ".join(f"{name} {value:.0f}" for name, value in work.items())
    lines = [
        f"Least work {total:.0f} GFLOP ({parts}); at {rate:.0f} GFLOP/s of one core's matrix products "
        f"{total / rate:.1f} processor seconds. Chorus takes {taken / (total / rate):.1f} times that.",
    ]
    for block in found["blocks"]:
        if "parts" in block:
            seconds = ", ".join(f"{name} {statistics.median(s):.2f}" for name, s in block["parts"].items())
            lines.append(f"Parts of the rollout of {block['name']}, processor seconds: {seconds}.")
    return ["  \n".join(lines)]


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write_table(source.with_suffix(".md"), read_numbers(source))
