"""Plots as inline SVG: text stays text, colours follow the page, matplotlib keeps no state.

Colours that must follow the page are drawn in stand-in colours and replaced by CSS variables afterwards.
"""

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlhf.report.verdict import NEGLIGIBLE_NATS

INK, FAINT, GRID, BLUE, ORANGE, GREEN, GREY = (f"#01020{digit}" for digit in range(3, 10))
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    GREY: "--grey",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names may hold a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "path.simplify_threshold": 0.5,
}
WIDTH = 4.6
"""Inches; small enough that 9-point text stays readable when a phone shrinks the figure to its screen."""
_MAX_POINTS = 300
_MAX_TICKS = 24

Draw = Callable[[Figure], None]


def svg(draw: Draw, height: float = 3.0, width: float = WIDTH, label: str = "") -> str:
    """The figure that `draw` makes, as an <svg> element without ids of its own, scripts or addresses."""
    settings: Any = _STYLE | {"svg.hashsalt": label}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # the reader's browser has its own fonts
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            dpi=200,
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    return _inline(buffer.getvalue(), label)


def _inline(text: str, label: str) -> str:
    """What HTML needs of an SVG file."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    # Several figures share a page: numbered ids would meet; those of clips and markers hash their content.
    text = re.sub(r'\sid="(?:[a-zA-Z][a-zA-Z0-9]*[_.])+\d{1,4}"', "", text)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img" aria-label="LABEL">', text)
    text = text.replace('aria-label="LABEL"', f'aria-label="{html.escape(label)}"', 1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text)


def heat_map(matrix: np.ndarray, names: list[str], ordered_by: str) -> str:
    """Row u, column v: what u loses (negative) or gains by getting the answers made for v; the diagonal
    is 0.
    """
    matrix = np.asarray(matrix, np.float64)
    change = matrix - np.diag(matrix)[:, None]
    # A few people with very strong tastes would leave everybody else white.
    reach = max(
        float(np.quantile(np.abs(change), 0.97)), NEGLIGIBLE_NATS
    )  # and noise must not look like taste
    cut = "both" if np.abs(change).max() > reach else "neither"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        # Red is bad news: another person's policy would serve u better.
        image = axes.imshow(
            change, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -reach, reach), interpolation="nearest"
        )
        axes.grid(False)
        if len(names) <= _MAX_TICKS:
            ticks = [_short(name) for name in names]
            size = 9 if len(names) <= 12 else 7
            axes.set_xticks(range(len(names)), ticks, rotation=90, fontsize=size)
            axes.set_yticks(range(len(names)), ticks, fontsize=size)
        axes.set_xlabel(f"whose policy answers ({ordered_by})")
        axes.set_ylabel("whose taste judges")
        figure.colorbar(image, ax=axes, shrink=0.8, extend=cut, label="reward minus own policy's (nats)")

    return svg(draw, height=4.0, label="people by people matrix of rewards")


def person_dots(series: dict[str, np.ndarray]) -> str:
    """A row a person, in rising order of the first series: one dot for each of own, aggregate and swapped
    reward.
    """
    order = np.argsort(next(iter(series.values())), kind="stable")
    # Dots that coincide stay visible: the own one is drawn small and last.
    looks = {"own": (BLUE, 0.6, 5), "aggregate": (ORANGE, 1.2, 4), "swapped": (GREY, 2.0, 3)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        place = np.arange(len(order))
        size = float(np.clip(900 / len(order), 5, 30))
        values = np.array([np.asarray(value)[order] for value in series.values()])
        axes.hlines(place, values.min(axis=0), values.max(axis=0), color=GRID, linewidth=0.8)
        for name, row in zip(series, values, strict=True):
            colour, scale, layer = looks[name]
            axes.scatter(row, place, s=size * scale, color=colour, label=name, zorder=layer)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("expected reward by the person's own taste (nats)")
        axes.set_ylabel(f"{len(order)} people")
        figure.legend(loc="outside upper center", ncols=len(series), handletextpad=0.1)

    return svg(draw, height=float(np.clip(1.2 + 0.11 * len(order), 2.4, 5.5)), label="reward of each person")


def front(points: dict[str, tuple[float, float]], xlabel: str, ylabel: str) -> str:
    """Named points (price, worth) and the line through those that no other beats in both: the Pareto front."""
    best = pareto(points)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        line = sorted(points[name] for name in best)
        axes.step([x for x, _ in line], [y for _, y in line], where="post", color=GREEN, linewidth=1.2)
        for number, (name, (x, y)) in enumerate(points.items(), 1):
            axes.scatter([x], [y], s=28, color=GREEN if name in best else GREY, zorder=3)
            axes.annotate(str(number), (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axes.margins(0.12)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)

    return svg(draw, height=3.2, label=f"{ylabel} against {xlabel}")


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names whose price no other undercuts at the same or more worth; of equal points all."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]


def histogram(values: np.ndarray, xlabel: str, marks: dict[str, float], unit: str = "people") -> str:
    """Histogram over people with named vertical lines."""
    values = np.asarray(values, np.float64)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bins = int(np.clip(np.sqrt(len(values)) * 2, 5, 30))
        axes.hist(values, bins=bins, color=BLUE, alpha=0.75)
        for (name, value), colour, style in zip(
            marks.items(), (ORANGE, GREEN, GREY), ("-", "--", ":"), strict=False
        ):
            axes.axvline(value, color=colour, linestyle=style, linewidth=1.8, label=f"{name} {value:.2f}")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(unit)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
        if marks:
            figure.legend(loc="outside upper center", ncols=len(marks))

    return svg(draw, height=2.6, label=f"histogram: {xlabel}")


def accuracy_curve(
    curves: dict[str, dict[str, dict[str, float]]], levels: dict[str, dict[str, float]]
) -> str:
    """Accuracy against the number of answers.

    Args:
      curves: name → {n: {mean, low, high}}; levels: name → {mean, low, high}, drawn as horizontal lines.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, curve), colour, marker in zip(curves.items(), (BLUE, GREEN), ("o", "s"), strict=False):
            counts = sorted(int(n) for n in curve)
            rows = [curve[str(n)] for n in counts]
            # Equal steps: the first answers matter most, and 10 to 20 would squeeze them together.
            place = np.arange(len(counts))
            axes.fill_between(
                place,
                [r["low"] for r in rows],
                [r["high"] for r in rows],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(place, [r["mean"] for r in rows], color=colour, marker=marker, markersize=4, label=name)
            axes.set_xticks(place, [str(n) for n in counts])
        for (name, level), colour, style in zip(levels.items(), (ORANGE, GREY), ("--", ":"), strict=False):
            axes.axhline(level["mean"], color=colour, linestyle=style, linewidth=1.8, label=name)
            axes.axhspan(level["low"], level["high"], color=colour, alpha=0.1, linewidth=0)
        axes.set_xlabel("answers given")
        axes.set_ylabel("last choices predicted right (share)")
        figure.legend(loc="outside upper center", ncols=2)

    return svg(draw, height=3.4, label="accuracy against answers")


def training_curve(steps: np.ndarray, values: np.ndarray, name: str, unit: str = "") -> str:
    """One metric over training: what was logged (thin), and a running mean (thick); gaps where it was not
    finite. Shares are drawn as percent.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x, y = thin(steps, values)
        many = len(x) > 30
        axes.plot(x, y, color=BLUE, linewidth=0.8 if many else 1.5, alpha=0.45 if many else 1.0)
        if len(x) == 1:
            axes.plot(x, y, color=BLUE, marker="o")
        if many:
            axes.plot(x, running_mean(y, max(3, len(x) // 20)), color=BLUE, linewidth=1.8)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if unit == "share":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    return svg(draw, height=1.7, width=3.0, label=name)


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_MAX_POINTS` points: means of equal stretches, so that nothing but noise is lost."""
    if len(steps) <= _MAX_POINTS:
        return np.asarray(steps), np.asarray(values)
    parts = np.array_split(np.arange(len(steps)), _MAX_POINTS)
    x, y = (np.array([np.mean(array[part]) for part in parts]) for array in (steps, values))
    return x, y


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` finite values, over fewer at the ends."""
    kernel = np.ones(width)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite.astype(float), kernel, "same")
    return np.where(finite, total / np.maximum(count, 1.0), np.nan)


def _short(name: str, length: int = 14) -> str:
    name = "".join(character if character.isprintable() else " " for character in name)
    return name if len(name) <= length else name[: length - 1] + "…"
