"""What is measured of each person, and the mean over people with its interval.

A person's accuracy is the share of their comparisons that are predicted right; every person counts alike. Intervals
are over people, not comparisons: those of one person are not independent.

Letters in shapes: U people, T comparisons of a person (padded).
"""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from scipy.special import stdtrit

if TYPE_CHECKING:  # the models are not needed to measure, and are slow to import
    from rewards.methods.base import Comparisons


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over people with its 95 % interval, which resamples people, or is Student's where they are few."""

    mean: float
    low: float
    high: float


FEW = 30
"""Below so many people a percentile interval is too narrow, by √((U−1)/U) and by the normal quantile where t's is wanted: of 13
people it holds the truth in 91 cases of a hundred, of 5 in 83 (Hesterberg 2015, The American Statistician 69, §3.2)."""
SHARES = (0.0, 1.0)


def quantile(people: int) -> float:
    """By how many standard errors of the mean an interval over so many people reaches to either side."""
    return float(stdtrit(people - 1, 0.975)) if 2 <= people < FEW else 1.96


def half_width(values: np.ndarray) -> np.ndarray:
    """Half of Student's 95 % interval of the mean over the last axis, of 2 people or more: t(0.975, U−1) · s/√U."""
    people = values.shape[-1]
    return quantile(people) * values.std(axis=-1, ddof=1) / np.sqrt(people)


def bootstrap(
    values: np.ndarray,
    key: Key[Array, ""],
    draws: int = 2000,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of values[U] and its 95 % interval: percentiles over resampled people, or Student's below FEW people.

    Args:
      within: between what the mean lies, whatever the data; Student's interval is cut there.
    """
    values = np.asarray(values, np.float64)
    if 2 <= len(values) < FEW:
        mean, half = float(values.mean()), float(half_width(values))
        return Interval(mean, max(mean - half, within[0]), min(mean + half, within[1]))
    # By hand: `scipy.stats.bootstrap` is as fast, but takes no single person, and its intervals differ in the last digits
    # from those of stored runs.
    seed = np.asarray(jax.random.key_data(key)).tolist()
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[index].mean(axis=1), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def padded_rows(
    user_index: Int[np.ndarray, " N"], mask: Bool[np.ndarray, " N"], people: Int[np.ndarray, " U"]
) -> Int[np.ndarray, "U T"]:
    """Row numbers of each person's comparisons under `mask`, in file order; −1 pads."""
    rows = np.flatnonzero(mask & np.isin(user_index, people))
    rows = rows[np.argsort(user_index[rows], kind="stable")]
    starts = np.searchsorted(user_index[rows], people)
    counts = np.searchsorted(user_index[rows], people, side="right") - starts
    place = np.arange(max(1, counts.max(initial=0)))
    present = place < counts[:, None]
    index = np.where(present, starts[:, None] + place, 0)
    return np.where(present, rows[index] if len(rows) else -1, -1)


def person_accuracy(margins: Float[np.ndarray, "U T"], pairs: "Comparisons") -> Float[np.ndarray, " U"]:
    """Share of each person's pairs predicted right, a margin of exactly 0 half; NaN without pairs."""
    signed = np.asarray(margins) * np.where(pairs.outcome > 0.5, 1.0, -1.0)
    return person_mean(np.where(signed == 0, 0.5, signed > 0), pairs)


def person_mean(values: np.ndarray, pairs: "Comparisons") -> Float[np.ndarray, " U"]:
    """Mean of values[U, T] over each person's pairs; NaN without pairs."""
    present = pairs.weight > 0
    count = present.sum(axis=1)
    total = np.sum(np.where(present, values, 0.0), axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
