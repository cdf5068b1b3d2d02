"""Policy gradients on tasks whose optimum is known: does the policy get there, for everybody, and how far away is it?

    python -m scripts.experiments.rl_probes [--seeds 5] [--iterations 300] [--out docs/results/rl_probes]

The tasks are in `rl_tasks`. Writes OUT.json, OUT.md and OUT.png; about ten minutes on two cores.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rewards import files
from scripts import pages
from scripts.experiments.rl_tasks import (
    BETA,
    GROUP_SIZE,
    GROUPS,
    INTENSITIES,
    PROBES,
    Algorithm,
    Place,
    intensity,
    train,
)

ARMS: tuple[tuple[Algorithm, Place], ...] = (("ppo", "reward"), ("centred", "reward"), ("rloo", "reward"))
STRENGTH_ARMS: tuple[tuple[Algorithm, Place], ...] = (
    ("centred", "loss"),
    ("rloo", "loss"),
    ("grpo", "loss"),
    ("gdpo", "loss"),
    ("grpo", "reward"),
)


def experiment(seeds: int, iterations: int) -> dict[str, Any]:
    """Every probe under `ARMS` with curves; the KL to the reference at three intensities under `STRENGTH_ARMS`."""
    result: dict[str, Any] = {
        "seeds": list(range(seeds)),
        "iterations": iterations,
        "probes": {},
        "strength": {},
    }
    every = max(1, iterations // 20)
    for algorithm, place in ARMS:
        for name, probe in PROBES.items():
            result["probes"].setdefault(name, {})[algorithm] = [
                _kept(train(probe, algorithm, seed, iterations, place=place, every=every))
                for seed in range(seeds)
            ]
    for algorithm, place in STRENGTH_ARMS:
        result["strength"][f"{algorithm}, KL in the {place}"] = {
            str(factor): [
                _kept(train(intensity(factor), algorithm, seed, iterations, place=place))
                for seed in range(seeds)
            ]
            for factor in INTENSITIES
        }
    return result


def _kept(run: dict[str, Any]) -> dict[str, Any]:
    """A run without the metrics of its last iteration, which the page does not need."""
    return {name: value for name, value in run.items() if name != "metrics"}


def spread(runs: list[dict[str, float]], name: str) -> str:
    """Mean, smallest and largest over seeds."""
    values = [run[name] for run in runs]
    return f"{np.mean(values):.3f} ({min(values):.3f} – {max(values):.3f})"


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/results/rl_probes.md."""
    lines = [
        "# Policy gradients on tasks with a known optimum",
        "",
        f"`python -m scripts.experiments.rl_probes --seeds {len(result['seeds'])} --iterations {result['iterations']}` "
        f"({result['seconds']:.0f} s). Two layers of random weights, 16 tokens, answers of one or two of them, all 241 "
        f"counted; {GROUPS * GROUP_SIZE} answers an iteration, β = {BETA}. Mean (smallest – largest) over seeds.",
        "",
        "KL(policy ‖ optimum) in nats after training; `by person` is judged on four people never seen in training.",
        "",
        "| probe | before | " + " | ".join(algorithm for algorithm, _ in ARMS) + " |",
        "|---" * (len(ARMS) + 2) + "|",
    ]
    for name, arms in result["probes"].items():
        before = np.mean([run["curve"][0][1] for run in arms[ARMS[0][0]]])
        cells = [spread(arms[algorithm], "kl_to_optimum") for algorithm, _ in ARMS]
        lines.append(f"| {name} | {before:.3f} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "![KL to the optimum over training](rl_probes.png)",
        "",
        "## Is the strength of a taste kept?",
        "",
        "The same taste ‖w‖ × 1/4, 1 and 4 (β = 1): KL(policy ‖ π_ref) in nats. Dividing by the group's standard deviation makes "
        "one policy of the three when the KL is a term of the loss. With the KL in the reward it is divided as well, and "
        "the optimum stays where it was.",
        "",
        "| | " + " | ".join(f"× {factor:g}" for factor in INTENSITIES) + " |",
        "|---" * (len(INTENSITIES) + 1) + "|",
    ]
    for name, factors in result["strength"].items():
        lines.append(
            f"| {name} | " + " | ".join(spread(runs, "kl_to_reference") for runs in factors.values()) + " |"
        )
    first = next(iter(result["strength"].values()))
    optimum = [f"{runs[0]['optimum_kl_to_reference']:.3f}" for runs in first.values()]
    lines += [f"| optimum (seed 0) | {' | '.join(optimum)} |", ""]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """KL to the optimum over iterations, a panel a probe, a line a seed."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axes, (name, arms) in zip(figure.subplots(1, len(PROBES)), result["probes"].items(), strict=True):
        for colour, (algorithm, _) in enumerate(ARMS):
            for seed, run in enumerate(arms[algorithm]):
                label = algorithm if seed == 0 else None
                axes.plot(
                    *np.transpose(run["curve"]), color=f"C{colour}", alpha=0.7, linewidth=1, label=label
                )
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("iteration")
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("KL to the optimum, nats")
    figure.axes[-1].legend(fontsize=8)
    pages.save(figure, path, dpi=120)


def main() -> None:
    args = pages.options(__doc__, "rl_probes", iterations=300).parse_args()
    result = pages.obtain(args, lambda: experiment(args.seeds, args.iterations))
    files.write_text(Path(f"{args.out}.md"), markdown(result))
    plot(result, Path(f"{args.out}.png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
