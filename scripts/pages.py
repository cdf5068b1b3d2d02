"""What the pages of results have in common: stored numbers, intervals over seeds, variety of texts, pictures, options.

Scripts that are run by their path import it as `pages`, experiments as `scripts.pages`.
"""

import argparse
import gzip
import io
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import t as student_t

from rewards.errors import UserError
from rewards.files import atomic_path, read_json, write_text

LINE = 1000  # characters: about one run with its curve


def write_numbers(path: Path, numbers: dict[str, Any], raw: Sequence[str] = ()) -> None:
    """Store what a page is made of as JSON: whatever fits on a line on one line, so a line a run, not a line a number.

    Keys in `raw` hold series that only redrawing needs; they go into `path`.gz. The same numbers give the same files.
    """
    packed, series = packed_of(path), {key: numbers[key] for key in raw if key in numbers}
    if series:
        text = json.dumps(series, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with atomic_path(packed) as temporary:
            temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        packed.unlink(missing_ok=True)
    write_text(path, _lines({key: part for key, part in numbers.items() if key not in series}) + "\n")


def read_numbers(path: Path) -> dict[str, Any]:
    """What `write_numbers` stored, the series of `path`.gz included.

    Raises:
      UserError: no such file, or one that is damaged.
    """
    numbers, packed = read_json(path), packed_of(path)
    if not packed.is_file():
        return numbers
    try:
        return numbers | json.loads(gzip.decompress(packed.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{packed}: not compressed JSON ({error}); restore or recreate the file") from None


def packed_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _lines(value: Any, depth: int = 0) -> str:
    """JSON on one line where that is short enough or holds nothing but plain values; else a line a part."""
    whole = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, dict):
        parts = list(value.values())
    else:
        parts = value if isinstance(value, list) else []
    if depth and (len(whole) <= LINE or not any(isinstance(part, dict | list) for part in parts)):
        return whole
    texts = [_lines(part, depth + 1) for part in parts]
    if isinstance(value, dict):
        texts = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {text}"
            for key, text in zip(value, texts, strict=True)
        ]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n {' ' * depth}" + f",\n {' ' * depth}".join(texts) + f"\n{' ' * depth}{end}"


def obtain(
    args: argparse.Namespace, make: Callable[[], dict[str, Any]], raw: Sequence[str] = ()
) -> dict[str, Any]:
    """Numbers of an experiment: the stored ones with `--write`; else what `make` finds, and its seconds, stored."""
    path = Path(f"{args.out}.json")
    if args.write:
        return read_numbers(path)
    start = time.perf_counter()
    found = make()
    found["seconds"] = time.perf_counter() - start
    write_numbers(path, found, raw)
    return found


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
    """Write a PNG of 256 colours, a third of the size; without date and version the same numbers give the same file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", facecolor="white", metadata={"Software": None}, **options)
    # The method with the least error of any one colour: rare ones count as well, as on a scale of colours.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    picture = Image.open(drawn).convert("RGB").quantize(256, method=method, kmeans=1, dither=dither)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def options(
    doc: str | None, out: str, *, seeds: int = 5, iterations: int | None = None
) -> argparse.ArgumentParser:
    """`--seeds`, `--iterations`, `--out` and `--write` of an experiment that writes docs/results/`out`.*"""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    if iterations is not None:
        parser.add_argument("--iterations", type=int, default=iterations)
    parser.add_argument("--out", default=f"docs/results/{out}")
    parser.add_argument(
        "--write", action="store_true", help="page and pictures again from the stored numbers"
    )
    return parser
