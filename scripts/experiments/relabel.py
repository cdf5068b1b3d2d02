"""Does relabelling for other people save samples? The probe with two opposite people, few answers an iteration.

    python -m scripts.experiments.relabel [--seeds 5] [--iterations 160] [--out docs/results/relabel]

Task and optimum are those of `rl_tasks` ("by person"); `rlhf.train.rl.relabel` has the equations. Every arm samples 16 answers an
iteration, but for the two that show what more sampling would have brought. Writes OUT.json, OUT.md and OUT.png.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rewards import files
from scripts import pages
from scripts.experiments.rl_tasks import GROUP_SIZE, PROBES, train

ARMS: dict[str, dict[str, Any]] = {
    "16 answers": {"groups": 2},
    "16, relabelled once": {"groups": 2, "relabel": 1},
    "16, relabelled 3 times": {"groups": 2, "relabel": 3},
    "16, relabelled 3 times, weights up to 4": {"groups": 2, "relabel": 3, "relabel_limit": 4.0},
    "32 answers": {"groups": 4},
    "64 answers": {"groups": 8},
}

EFFECTIVE = "relabel_effective_share"


def experiment(seeds: int, iterations: int) -> dict[str, Any]:
    probe, every = PROBES["by person"], max(1, iterations // 16)
    arms = {
        name: [train(probe, "rloo", seed, iterations, every=every, **arm) for seed in range(seeds)]
        for name, arm in ARMS.items()
    }
    for run in itertools.chain.from_iterable(arms.values()):
        run[EFFECTIVE] = run.pop("metrics").get(f"train/{EFFECTIVE}")
    return arms


def at(runs: list[dict[str, Any]], iteration: int) -> np.ndarray:
    return np.array([dict(map(tuple, run["curve"]))[iteration] for run in runs])


def difference(runs: list[dict[str, Any]], base: list[dict[str, Any]], iteration: int) -> tuple[float, float]:
    """Mean of the paired differences over seeds, and half of the 95 % interval (Student's t)."""
    values = at(runs, iteration) - at(base, iteration)
    return float(values.mean()), pages.half_width(values)


def markdown(result: dict[str, Any]) -> str:
    arms = result["arms"]
    base = arms["16 answers"]
    steps = [number for number, _ in base[0]["curve"]]
    shown = [steps[len(steps) // 8], steps[len(steps) // 4], steps[len(steps) // 2], steps[-1]]
    lines = [
        "# Relabelling: does one rollout teach for several people?",
        "",
        f"`python -m scripts.experiments.relabel --seeds {len(base)} --iterations {steps[-1]}` ({result['seconds']:.0f} s, two "
        f"cores). The probe with two opposite people of [rl_probes.md](rl_probes.md), RLOO, groups of {GROUP_SIZE}. KL(policy ‖ "
        "optimum) in nats, mean over four people never seen, then over seeds; in brackets the paired difference from "
        "16 answers without relabelling ± 95 % over seeds (Student's t).",
        "",
        "| sampled an iteration | "
        + " | ".join(f"iteration {step}" for step in shown)
        + " | effective share |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for name, runs in arms.items():
        cells = []
        for step in shown:
            text = f"{at(runs, step).mean():.3f}"
            mean, half = difference(runs, base, step)
            cells.append(text if runs is base else f"{text} ({mean:+.3f} ± {half:.3f})")
        share = [run[EFFECTIVE] for run in runs]
        cells.append("–" if share[0] is None else f"{np.mean(share):.0%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "![KL to the optimum over iterations](relabel.png)", "", reading(arms), ""]
    return "\n".join(lines)


def reading(arms: dict[str, Any]) -> str:
    """What the table says, decided by the numbers."""
    base, last = arms["16 answers"], arms["16 answers"][0]["curve"][-1][0]
    said = []
    for name in ("16, relabelled once", "16, relabelled 3 times", "16, relabelled 3 times, weights up to 4"):
        mean, half = difference(arms[name], base, last)
        verdict = (
            "ends nearer to the optimum"
            if mean + half < 0
            else "ends farther from it"
            if mean - half > 0
            else "shows no difference at the end"
        )
        said.append(f"“{name}” {verdict}")
    return (
        "Beside the same 16 sampled answers: "
        + "; ".join(said)
        + ". The effective share is that of the last iteration, when "
        "opposite people give different answers. Weights are over whole completions; answers here have one or two tokens, "
        "and for long ones the weights fall faster."
    )


def plot(arms: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for colour, (name, runs) in enumerate(arms.items()):
        curves = np.array([run["curve"] for run in runs])
        axes.plot(curves[0, :, 0], curves[:, :, 1].mean(axis=0), color=f"C{colour}", label=name)
        low, high = curves[:, :, 1].min(axis=0), curves[:, :, 1].max(axis=0)
        axes.fill_between(curves[0, :, 0], low, high, color=f"C{colour}", alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel("KL to the optimum, nats")
    axes.legend(fontsize=7)
    pages.save(figure, path, dpi=120)


def main() -> None:
    args = pages.options(__doc__, "relabel", iterations=160).parse_args()
    result = pages.obtain(args, lambda: {"arms": experiment(args.seeds, args.iterations)})
    files.write_text(Path(f"{args.out}.md"), markdown(result))
    plot(result["arms"], Path(f"{args.out}.png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
