"""The page and the figure of `scripts.experiments.hints`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scripts.experiments.hints_world import ROWS, VOCABULARY
from scripts.pages import half_width, save


def best_rates(arms: dict) -> dict[str, str]:
    """The learning rate of every arm with the most content over all interactions, mean over seeds."""
    return {
        name: max(by_rate, key=lambda rate: np.mean([run["short"] for run in by_rate[rate]]))
        for name, by_rate in arms.items()
    }


def _learning(arms: dict) -> list[str]:
    """One row an arm, at its better rate."""
    lines = [
        "| A reacts with | rate | median | by seed | content in the last 40 | over all |",
        "|---|---|---|---|---|---|",
    ]
    for name, rate in best_rates(arms).items():
        runs = arms[name][rate]
        reached = [np.inf if run["until"] is None else run["until"] for run in runs]
        last, over = (
            [float(np.mean(run["short"][part])) for run in runs] for part in (slice(-5, None), slice(None))
        )
        counts = ", ".join("∞" if np.isinf(value) else f"{value:.0f}" for value in reached)
        median = float(np.median(reached))
        lines.append(
            f"| {name} | {rate} | {'∞' if np.isinf(median) else f'{median:.0f}'} | {counts} | "
            f"{np.mean(last):.2f} ± {half_width(last):.2f} | {np.mean(over):.2f} ± {half_width(over):.2f} |"
        )
    return lines


def markdown(result: dict) -> str:
    """The page docs/results/hints.md."""
    seeds = result["seeds"]
    rates = ", ".join(next(iter(next(iter(result["learning"].values())).values())))
    lines = [
        "# Hints: learned sooner, and by whom",
        "",
        f"`python -m scripts.experiments.hints --seeds {seeds} --iterations {result['iterations']}` "
        f"({result['seconds']:.0f} s on two shared cores). A two-layer decoder of {VOCABULARY} tokens and an artificial language "
        f"({np.mean(result['language_loss']):.3f} nats a token after it was taught). ± is half of the 95 % interval over seeds.",
        "",
        "## Interactions until A is content",
        "",
        f"Completions A reacted to until 80 % of the last {4 * ROWS} were two or three right words; ∞: not within "
        f"{result['iterations'] * ROWS}. Every arm at the better of the learning rates {rates}.",
        "",
    ]
    for share, arms in result["learning"].items():
        short = f"{1000 * float(share):.0f} of 1000 answers are short before the first reaction"
        lines += [f"### {short}", "", *_learning(arms), ""]
    lines += [
        "![Share of completions that A is content with](hints.png)",
        "",
        "## Who else moves",
        "",
        "KL(before ‖ after) of other people's policies as a share of A's own, on completions from before. Held people were "
        "anchored while A's hint was learned; the unseen ones were drawn afterwards.",
        "",
        "| what may move | A, nats a token | nobody (z = 0) | held | held, worst | unseen | unseen, abs(cos) < 0.3 | A content |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in result["isolation"].items():
        held = [row["held"] for row in rows if row["held"]]
        apart = [
            float(
                np.mean(
                    [
                        share
                        for share, cosine in zip(row["unseen"], row["cosine"], strict=True)
                        if abs(cosine) < 0.3
                    ]
                )
            )
            for row in rows
            if any(abs(cosine) < 0.3 for cosine in row["cosine"])
        ]
        cells = [
            f"{np.mean([row['A_nats_a_token'] for row in rows]):.2f}",
            _percent([abs(row["nobody"]) for row in rows]),
            _percent([float(np.mean(shares)) for shares in held]) if held else "–",
            _percent([float(np.max(shares)) for shares in held]) if held else "–",
            _percent([float(np.mean(row["unseen"])) for row in rows]),
            _percent(apart) if apart else "–",
            f"{np.mean([row['short_at_end'] for row in rows]):.2f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## The same reactions as observations about w",
        "",
        "Accuracy on fresh pairs, six independent axes, 100 simulated people a seed, after n reactions:",
        "",
        "| reactions | 0 | 3 | 6 | 12 |",
        "|---|---|---|---|---|",
    ]
    for name in result["coefficients"][0]:
        table = np.array([row[name] for row in result["coefficients"]])
        cells = [
            f"{table[:, i].mean():.3f} ± {half_width(table[:, i].tolist()):.3f}"
            for i in range(table.shape[1])
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *NOTES, ""])


NOTES = (
    "Nobody in particular (z = 0) cannot be moved by a conditioner. Other people can be held still while they are fewer than the "
    "coefficients (here 4); the many who span them cannot, and whoever was not held inherits the hint as far as their z "
    "points the way A's does. Where that matters, let the hint be a statement about w_u alone: it moves nobody else.",
    "",
    "Limits: an artificial language in which the model knows the hint perfectly before A ever gives one; simulated reactions; "
    "directives in the last table name the axis that is most wrong, which real people need not know.",
)


def _percent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * half_width(values):.1f} %"


def plot(result: dict, path: Path) -> None:
    """Share of content by completions reacted to, mean over seeds and four iterations."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (share, arms) in zip(panels, result["learning"].items(), strict=True):
        for name, rate in best_rates(arms).items():
            runs = np.array([run["short"] for run in arms[name][rate]])
            smooth = np.array([np.convolve(run, np.ones(4) / 4, mode="valid") for run in runs])
            count = ROWS * (np.arange(smooth.shape[1]) + 4)
            line = axes.plot(count, smooth.mean(axis=0), label=name)[0]
            axes.fill_between(
                count, smooth.min(axis=0), smooth.max(axis=0), color=line.get_color(), alpha=0.12
            )
        axes.set(
            xlabel="completions A reacted to",
            ylim=(0, 1),
            title=f"{1000 * float(share):.0f} of 1000 short at first",
        )
    panels[0].set_ylabel("share A is content with")
    panels[0].legend()
    save(figure, path, dpi=120)
