"""Draw the README's picture from a quickstart run: `python scripts/figures.py runs/quickstart docs/images/matrix.png`.

Left: accuracy on people never seen against the number of answers. Right: every person's reward from every person's
policy, people ordered by their first taste axis.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rewards.files import read_json


def draw(run: Path, target: Path) -> None:
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _curve(left, read_json(run / "rewards" / "metrics.json")["evaluation"])
    image = _matrix(right, read_json(run / "evaluation" / "matrix.json"))
    figure.colorbar(image, ax=right, label="reward above the row's mean, nats")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _curve(axes, replay: dict) -> None:
    counts = [int(n) for n in replay["accuracy"]]
    for name, label, colour in (
        ("accuracy", "chosen questions", "C0"),
        ("accuracy_random", "random questions", "C1"),
    ):
        values = replay[name].values()
        axes.plot(counts, [v["mean"] for v in values], "o-", color=colour, label=label)
        axes.fill_between(
            counts, [v["low"] for v in values], [v["high"] for v in values], color=colour, alpha=0.12
        )
    axes.set_xticks(counts)
    axes.axhline(replay["pooled_accuracy"]["mean"], color="0.4", ls="--", label="one model for everybody")
    axes.axhline(replay["swap"]["swapped"]["mean"], color="C3", ls=":", label="somebody else's coefficients")
    axes.set(
        xlabel="answers of a new person", ylabel="accuracy on their last choices", title="People never seen"
    )
    axes.legend(fontsize=8, loc="lower right")


def _matrix(axes, record: dict):
    reward = np.array(record["reward"])
    # Rows on one scale: what matters is where in its row a person does best. Order by the leading contrast.
    centred = reward - reward.mean(axis=1, keepdims=True)
    order = np.argsort(np.linalg.svd(centred)[0][:, 0])
    shown = centred[np.ix_(order, order)]
    bound = np.abs(shown).max()
    axes.set(
        xlabel="whose policy answers",
        ylabel="whose taste judges",
        xticks=[],
        yticks=[],
        title="One policy, 72 people",
    )
    return axes.imshow(shown, cmap="RdBu", vmin=-bound, vmax=bound)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
