"""Make docs/results/electricity_rl.{json,md,png} from finished runs of PPO and critic-free estimators.

    chorus train grpo configs/electricity/grpo.yaml algorithm.kind=rloo output_dir=RUNS/rloo
    chorus evaluate configs/electricity/evaluate.yaml policy=RUNS/rloo output_dir=RUNS/rloo-eval
    python scripts/results_rl.py collect --runs RUNS centred rloo ppo
    python scripts/results_rl.py write

`collect` reads RUNS/NAME (a training run) and RUNS/NAME-eval (its evaluation) for each name.
"""

import argparse
import datetime
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pages
from matplotlib.figure import Figure

from rewards.errors import UserError
from rewards.files import read_json, write_text
from rlhf.run.metrics import read_metrics

STORE = Path(__file__).parents[1] / "docs" / "results" / "electricity_rl"
TARGET = 0.3  # nats to the optimum, for people never seen
CURVES = ("train/reward", "train/kl_ref_nats", "train/token_entropy_nats")
FIGURES = {
    "kl_to_optimum": "KL to the optimum (nats)",
    "kl_to_optimum_worst_decile": "… of the worst tenth of people",
    "own_reward": "reward, own coefficients",
    "swapped_reward": "… somebody else's coefficients",
    "aggregate_reward": "… the aggregate policy",
    "best_reward": "… of the optimum",
    "own_beats_aggregate": "own better than aggregate (share of people)",
    "diagonal_dominance": "diagonal dominance, pairs of people",
    "kl_to_reference": "KL to π_ref (nats)",
    "valid_mass": "probability of the 35 contracts",
}


def collect(runs: Path, names: list[str]) -> dict[str, Any]:
    """Curves and evaluations of the named runs; intervals are over people (one training run each)."""
    arms = {}
    for name in names:
        folder, judged = runs / name, runs / f"{name}-eval" / "metrics.json"
        if not judged.is_file():
            raise UserError(
                f"{judged}: no such evaluation; run chorus evaluate with output_dir={judged.parent}"
            )
        rows = read_metrics(folder)
        found = read_json(judged)
        enumerated = found["enumerated"]
        per_person = np.array(enumerated["per_person"]["kl_to_optimum"])
        rng = np.random.default_rng(0)
        means = rng.choice(per_person, (10_000, len(per_person))).mean(axis=1)
        arms[name] = {
            "steps": len(rows),
            "curves": {key: [round(row[key] or 0.0, 4) for row in rows] for key in CURVES},
            "figures": {key: enumerated[key] for key in FIGURES},
            "kl_interval": np.quantile(means, [0.025, 0.975]).tolist(),
            "people": len(found["people"]),
            "reference": enumerated["kl_of_reference_to_optimum"],
            "sampled": found["sampled"],
        }
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    made = f"{datetime.date.today()}; {versions}, Python {platform.python_version()}; 2 CPU cores"
    return {"made": made, "arms": arms}


def markdown(result: dict[str, Any]) -> str:
    arms = result["arms"]
    first = next(iter(arms.values()))
    within = [name for name, arm in arms.items() if arm["figures"]["kl_to_optimum"] <= TARGET]
    missed = [name for name in arms if name not in within]
    lines = [
        "# Electricity contracts by reinforcement learning",
        "",
        f"{result['made']}. SmolLM2-135M, the reward run and the supervised start of [electricity.md](electricity.md), "
        "`configs/electricity/{grpo,ppo}.yaml`. One training run an algorithm, so nothing here is a ranking of them.",
        "",
        "    python scripts/results_rl.py collect --runs RUNS " + " ".join(arms),
        "",
        f"The optimum π_ref·exp(w·φ/β) is known exactly over the 35 contracts. {first['people']} people never seen, ten answers "
        f"each. KL to it, at most {TARGET} nats wanted; π_ref itself is {first['reference']:.2f} away.",
        "",
        f"Within the target: {', '.join(within) or 'none'}. Missed: {', '.join(missed) or 'none'}.",
        "",
        "| figure | " + " | ".join(arms) + " |",
        "| --- |" + " --- |" * len(arms),
        "| iterations of 64 completions | " + " | ".join(str(arm["steps"]) for arm in arms.values()) + " |",
    ]
    for key, words in FIGURES.items():
        lines.append(
            f"| {words} | " + " | ".join(f"{arm['figures'][key]:.3f}" for arm in arms.values()) + " |"
        )
        if key == "kl_to_optimum":
            intervals = [
                f"{low:.3f} to {high:.3f}" for low, high in (arm["kl_interval"] for arm in arms.values())
            ]
            lines.append("| … 95 % over people | " + " | ".join(intervals) + " |")
    for key, words in (
        ("diagonal_dominance", "sampled: dominance"),
        ("valid_answers", "sampled: valid answers"),
    ):
        lines.append(
            f"| {words} | " + " | ".join(f"{arm['sampled'][key]:.3f}" for arm in arms.values()) + " |"
        )
    lines += [
        "",
        "![Reward, KL to the reference and entropy over iterations](electricity_rl.png)",
        "",
        "`ppo-lambda-0.95` and `ppo` differ in λ of GAE (0.95 and 1) and in their length. With 0.95 the run settles near to "
        "π_ref and far from the optimum: the KL of a token is charged at that token in full, the reward comes after some "
        "26 tokens and reaches the first ones only through a critic that starts at 0. With 1 it does not happen. One seed each.",
        "",
        "Reward in the curves is that of whoever was drawn (training people, the prior, extremes, nobody), so it varies with the "
        "people of a batch. DPO on the same rewards ends nearer to the optimum ([electricity.md](electricity.md)): it sees all "
        "35 contracts in every step, these runs only what they sampled.",
        "",
    ]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    titles = ("reward (w·φ)", "KL to π_ref, nats a completion", "entropy, nats a token")
    for axes, key, title in zip(figure.subplots(1, len(CURVES)), CURVES, titles, strict=True):
        for colour, (name, arm) in enumerate(result["arms"].items()):
            values = arm["curves"][key]
            axes.plot(np.arange(1, len(values) + 1), values, color=f"C{colour}", linewidth=1.2, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("iteration")
    figure.axes[0].legend(fontsize=8)
    pages.save(figure, path, dpi=120)


def write() -> None:
    result = pages.read_numbers(STORE.with_suffix(".json"))
    write_text(STORE.with_suffix(".md"), markdown(result))
    plot(result, STORE.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("collect", help="read runs and write page and picture")
    reading.add_argument("--runs", type=Path, required=True)
    reading.add_argument("names", nargs="+")
    commands.add_parser("write", help="draw page and picture again")
    args = parser.parse_args()
    if args.command == "collect":
        pages.write_numbers(STORE.with_suffix(".json"), collect(args.runs, args.names))
    write()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"results_rl: {error}", file=sys.stderr)
        raise SystemExit(2) from None
