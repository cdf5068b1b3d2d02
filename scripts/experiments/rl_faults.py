"""What reinforcement learning looks like when it goes wrong, and whether the detectors of `train.diagnosis` say so.

    python -m scripts.experiments.rl_faults [--seeds 5] [--out docs/results/rl_faults]

Trains the runs of `rl_fault_runs` (healthy ones, and one for each fault) and diagnoses them. Writes OUT.json (curves in
OUT.json.gz), OUT.md, and OUT/FAULT.png with the faulty metrics beside the healthy ones: the pictures of docs/rl-diagnosis.md.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from rewards import files
from rlhf.train.diagnosis.detectors import diagnose
from scripts import pages
from scripts.experiments.rl_fault_runs import FAULTS, ITERATIONS, Fault, sharp_base, train

BLUE, RED = "#2563c9", "#c2570c"
LOOKS: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e2e5e9",
    "axes.axisbelow": True,
}

Rows = list[dict[str, Any]]


def judge(fault: Fault, runs: list[Rows]) -> dict[str, Any]:
    """How many seeds end with the expected finding, since when, and what else was found.

    A healthy run counts when nothing was reported at any time: after 1, 2, … iterations.
    """
    named, since, others = 0, [], Counter()
    for rows in runs:
        history = [{finding.name for finding in diagnose(rows[:count])} for count in range(1, len(rows) + 1)]
        end = history[-1] if fault.expected else set().union(*history)
        named += fault.expected in end if fault.expected else not end
        since += (
            [1 + next(i for i, found in enumerate(history) if fault.expected in found)]
            if fault.expected in end
            else []
        )
        others.update(end - {fault.expected})
    parts = {"expected": fault.expected, "words": fault.words, "named": named, "since": since}
    return parts | {"others": dict(others.most_common())}


def curve(runs: list[Rows], metric: str) -> dict[str, list[float]]:
    """Median, lowest and highest value over seeds, by iteration."""
    values = np.array([[row.get(f"train/{metric}") for row in rows] for rows in runs], np.float64)
    parts = {"median": np.median(values, axis=0), "low": values.min(axis=0), "high": values.max(axis=0)}
    return {name: [float(f"{value:.4g}") for value in part] for name, part in parts.items()}


def draw(fault: Fault, faulty: dict[str, dict], healthy: dict[str, dict], path: Path) -> None:
    """Small multiples: each metric of the faulty runs over the healthy ones."""
    with matplotlib.rc_context(LOOKS):
        figure = Figure(figsize=(2.9 * len(fault.shows), 2.3), layout="constrained")
        for axes, metric in zip(
            np.atleast_1d(figure.subplots(1, len(fault.shows))), fault.shows, strict=True
        ):
            for name, curves, colour in (("healthy", healthy, BLUE), ("faulty", faulty, RED)):
                steps = np.arange(1, len(curves[metric]["median"]) + 1)
                axes.fill_between(
                    steps, curves[metric]["low"], curves[metric]["high"], color=colour, alpha=0.15, lw=0
                )
                axes.plot(steps, curves[metric]["median"], color=colour, lw=1.5, label=name)
            axes.set_title(f"train/{metric}", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if _spans_decades(faulty[metric], healthy[metric]):
                axes.set_yscale("log")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        pages.save(figure, path, dpi=120)


def _spans_decades(*curves: dict[str, list[float]]) -> bool:
    values = np.array([value for one in curves for value in one["median"]])
    values = values[np.isfinite(values)]
    return bool(values.min() > 0 and values.max() > 100 * values.min())


def experiment(seeds: int) -> dict[str, Any]:
    """Every run of every fault."""
    base, result = (
        sharp_base(),
        {"seeds": list(range(seeds)), "iterations": ITERATIONS, "faults": {}, "curves": {}},
    )
    shown = dict.fromkeys(metric for fault in FAULTS.values() for metric in fault.shows)
    for name, fault in FAULTS.items():
        runs = [train(fault, seed, base) for seed in range(seeds)]
        result["faults"][name] = judge(fault, runs)
        if name in ("healthy", "healthy_personal"):
            result["curves"][name] = {
                metric: curve(runs, metric) for metric in shown if f"train/{metric}" in runs[0][0]
            }
        if fault.shows and fault.expected != "not_finite":
            result["curves"][name] = {metric: curve(runs, metric) for metric in fault.shows}
        print(name, result["faults"][name], flush=True)
    return result


def pictures(result: dict[str, Any], out: Path) -> None:
    """out/FAULT.png of every fault with curves."""
    for name, fault in FAULTS.items():
        if fault.shows and name in result["curves"]:
            healthy = "healthy_personal" if fault.expected == "impersonal" else "healthy"
            draw(fault, result["curves"][name], result["curves"][healthy], out / f"{name}.png")


def markdown(result: dict[str, Any]) -> str:
    """OUT.md: which finding named each fault, how often, and from which iteration on."""
    count = len(result["seeds"])
    lines = [
        "# Faults of reinforcement learning and what names them",
        "",
        f"`python -m scripts.experiments.rl_faults --seeds {count}`. A tiny random decoder, "
        f"{result['iterations']} iterations, {count} seeds; every fault changes one thing of the healthy PPO run "
        "(`scripts/experiments/rl_fault_runs.py`). Diagnosed by `rlhf.train.diagnosis.detectors.diagnose`. What each looks like: "
        "[When it goes wrong](../rl-diagnosis.md).",
        "",
        "| run | what was done | finding | named in | from iteration (median) | also reported |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["faults"].items():
        expected = f"`{row['expected']}`" if row["expected"] else "none"
        since = f"{np.median(row['since']):.0f}" if row["since"] else ""
        others = ", ".join(f"`{other}` {times}/{count}" for other, times in row["others"].items())
        lines.append(
            f"| {name} | {row['words']} | {expected} | {row['named']}/{count} | {since} | {others} |"
        )
    lines += [
        "",
        "Findings reported beside the expected one are consequences that the run really shows: without a price of KL, for",
        "example, the policy also forgets to stop. A healthy run counts when nothing was reported after any of its iterations.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    args = pages.options(__doc__, "rl_faults").parse_args()
    out = Path(args.out)
    result = pages.obtain(args, lambda: experiment(args.seeds), raw=("curves",))
    pictures(result, out)
    files.write_text(out.with_suffix(".md"), markdown(result))


if __name__ == "__main__":
    main()
