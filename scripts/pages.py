"""What the pages of results have in common: intervals over seeds, the variety of texts, pictures, the usual options.

Scripts that are run by their path import it as `pages`, experiments as `scripts.pages`.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from rewards.files import atomic_path


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half of the 95 % interval of a mean over seeds, by Student's t; nan for one seed."""
    count = len(values)
    if count < 2:
        return float("nan")
    return float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))


def distinct(texts: Sequence[str], size: int) -> float:
    """distinct-n: different n-grams of words ÷ all n-grams of the texts together (Li et al. 2016, arXiv:1510.03055).

    Only for equally many texts comparable.
    """
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        grams.update(zip(*(words[start:] for start in range(size)), strict=False))
    return len(grams) / max(1, grams.total())


def save(figure: Figure, path: Path, **options) -> None:
    """Write a picture in the format of its suffix; without date and version the same numbers give the same file."""
    kind = path.suffix.removeprefix(".")
    nameless = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, facecolor="white", metadata=nameless, **options)


def options(
    doc: str | None, out: str, *, seeds: int = 5, iterations: int | None = None
) -> argparse.ArgumentParser:
    """`--seeds`, `--iterations` and `--out` of an experiment that writes docs/results/`out`.*"""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    if iterations is not None:
        parser.add_argument("--iterations", type=int, default=iterations)
    parser.add_argument("--out", default=f"docs/results/{out}")
    return parser
