"""Drawings of a sweep, in the style of `rlhf.report.plots`."""

import json

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf.report.plots import BLUE, FAINT, GREY, ORANGE, svg

_MOST_NAMED = 8  # values of a choice whose names fit beside an axis
_LONGEST = 16


def history(points: list[tuple[int, float]], direction: str, name: str) -> str:
    """Each trial's value and the best so far."""
    number = np.array([one for one, _ in points])
    value = np.array([one for _, one in points])
    best = np.minimum.accumulate(value) if direction == "minimize" else np.maximum.accumulate(value)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.scatter(number, value, s=16, color=GREY)
        axes.step(number, best, where="post", color=BLUE, linewidth=1.8)
        axes.set_xlabel("trial")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return svg(draw, height=2.4, label=f"{name} by trial")


def bars(shares: dict[str, float]) -> str:
    """Importance of keys, the greatest on top."""
    names = sorted(shares, key=lambda key: shares[key])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(range(len(names)), [shares[name] for name in names], color=BLUE, height=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share explained")
        axes.grid(axis="y", visible=False)

    return svg(draw, height=0.7 + 0.32 * len(names), label="importance of keys")


def front(values: np.ndarray, marked: list[bool], names: list[str], titles: tuple[str, str]) -> str:
    """Two objectives against one another, [N, 2]; marked points are joined and carry their names."""
    mark = np.array(marked, bool)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.scatter(*values[~mark].T, s=16, color=GREY)
        chosen = values[mark][np.argsort(values[mark][:, 0], kind="stable")]
        axes.plot(*chosen.T, color=BLUE, marker="o", markersize=5, linewidth=1.0)
        for name, point in zip(np.array(names)[mark], values[mark], strict=True):
            axes.annotate(str(name), point, textcoords="offset points", xytext=(4, 4), fontsize=7)
        axes.set_xlabel(titles[0])
        axes.set_ylabel(titles[1])

    return svg(draw, height=3.0, label=f"{titles[0]} against {titles[1]}")


def parallel_coordinates(
    axes_of: dict[str, tuple[list[object], str]], values: np.ndarray, name: str, direction: str
) -> str:
    """An upright axis a key and one for the objective, a line a trial.

    Args:
      axes_of: key → (its value in every trial, kind of its range).
    """
    columns = [_Column(key, given, kind) for key, (given, kind) in axes_of.items()]
    columns.append(_Column(name, list(values), "uniform"))
    places = np.stack([column.places for column in columns], axis=1)
    ranked = np.argsort(values if direction == "minimize" else -values, kind="stable")
    strong = set(ranked[: max(1, len(values) // 10)].tolist())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        across = np.arange(len(columns))
        for row in ranked[::-1]:
            best = int(row) in strong
            axes.plot(
                across,
                places[row],
                color=ORANGE if best else GREY,
                alpha=1.0 if best else 0.45,
                linewidth=1.8 if best else 0.8,
                zorder=3 if best else 2,
            )
        for place, column in enumerate(columns):
            axes.axvline(place, color=FAINT, linewidth=0.8)
            for height, label in column.ticks:
                axes.annotate(
                    label, (place, height), textcoords="offset points", xytext=(3, 0), fontsize=7, va="center"
                )
        axes.set_xticks(across, [column.title for column in columns], fontsize=7)
        axes.set_yticks([])
        axes.set_xlim(-0.2, len(columns) - 0.5)
        axes.set_ylim(-0.06, 1.06)
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return svg(draw, height=3.0, width=max(4.6, 1.15 * len(columns)), label="parallel coordinates of trials")


class _Column:
    """One axis: where each trial stands on it between 0 and 1, and what is written beside it."""

    def __init__(self, key: str, given: list[object], kind: str):
        self.title = "\n".join(key.rsplit(".", 1)) if "." in key else "\n".join(key.rsplit("/", 1))
        if kind == "choice":
            words = list(dict.fromkeys(sorted((json.dumps(one) for one in given), key=_natural)))
            height = {word: (n + 0.5) / len(words) for n, word in enumerate(words)}
            self.places = np.array([height[json.dumps(one)] for one in given])
            named = words if len(words) <= _MOST_NAMED else [words[0], words[-1]]
            self.ticks = [(height[word], _short(word.strip('"'))) for word in named]
            return
        numbers = np.array(given, np.float64)
        scaled = np.log(numbers) if kind.startswith("log") else numbers
        low, width = scaled.min(), np.ptp(scaled) or 1.0
        self.places = (scaled - low) / width
        ends = sorted({float(numbers.min()), float(numbers.max())})
        self.ticks = [(float(n), f"{end:.3g}") for n, end in enumerate(ends)]


def _natural(word: str) -> tuple[bool, float, str]:
    """Numbers by size, also those in a list of one, then words."""
    try:
        return False, float(word.strip("[]")), word
    except ValueError:
        return True, 0.0, word


def _short(word: str) -> str:
    return word if len(word) <= _LONGEST else word[: _LONGEST - 1] + "…"
