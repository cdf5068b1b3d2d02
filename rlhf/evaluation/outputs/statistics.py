"""Differences between policies over people and prompts: intervals, wins with lengths held equal, and how many prompts are needed.

One number x[u, p] a person u and prompt p, for example r_u(a) − r_u(b). Its mean over U people and P prompts varies because
other people, other prompts or other samples could have been drawn. With row means x̄[u], column means x̄[p]:

    V = var(x̄[u])/U + var(x̄[p])/P − var(e)/(U·P),   e[u, p] = x[u, p] − x̄[u] − x̄[p] + x̄

the two-way cluster variance: a person's prompts are not independent of one another, nor are a prompt's people. Sample variances
divide by the number less one; a component that comes out negative counts 0.

Source: Cameron, Gelbach and Miller 2011, Robust inference with multiway clustering; the components as in Owen 2007, The
pigeonhole bootstrap, whose plain form triples the variance of what is neither person nor prompt.

Letters in shapes: U people, P prompts, B draws, M pairs.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special, stats

DRAWS = 2000
LEVEL = 0.95
POWER = 0.8
SCALE = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)  # 2.80
RIDGE = 1e-3


class Interval(NamedTuple):
    """A mean and its 95 % interval over people and prompts."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


class Components(NamedTuple):
    """Variances of one number: of people's own means, of prompts' own means, of the rest; none is negative."""

    people: float
    prompts: float
    rest: float

    def variance(self, people: int, prompts: float) -> float:
        """Of the mean over so many people and prompts."""
        return self.people / people + self.prompts / prompts + self.rest / (people * prompts)


def components(values: np.ndarray) -> Components:
    """Method of moments on values[U, P]; with one person (prompt) all variation is the prompts' (the people's)."""
    values = np.asarray(values, np.float64)
    num_people, num_prompts = values.shape
    if num_people == 1 or num_prompts == 1:
        spread = float(values.var(ddof=1)) if values.size > 1 else 0.0
        return Components(0.0, spread, 0.0) if num_people == 1 else Components(spread, 0.0, 0.0)
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns + values.mean()
    spread = float((rest**2).sum() / ((num_people - 1) * (num_prompts - 1)))
    of_people = float(rows.var(ddof=1)) - spread / num_prompts
    of_prompts = float(columns.var(ddof=1)) - spread / num_people
    return Components(max(of_people, 0.0), max(of_prompts, 0.0), spread)


@functools.lru_cache(maxsize=4)
def _resamples(count: int, seed: int) -> np.ndarray:
    """float32[B, count], how often each was drawn over how many there are; the same for every number that is resampled."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS)
    return (drawn / count).astype(np.float32)


def interval(values: np.ndarray) -> Interval:
    """Mean of values[U, P] and its 95 % cluster-bootstrap interval.

    People and prompts are drawn anew, independently. The draws are scaled to the variance above and, for few clusters, by the
    quotient of Student's and the normal quantile, so that a true difference of none is called none in 95 of 100 cases.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, -np.inf, np.inf)
    drawn = np.zeros(DRAWS)
    for axis, count in enumerate(values.shape):
        if count > 1:
            effects = values.mean(axis=1 - axis) - mean
            drawn += _resamples(count, axis) @ effects
    spread = drawn.std()
    wanted = np.sqrt(components(values).variance(*values.shape))
    if spread == 0:
        return Interval(mean, mean, mean)
    freedom = min(count for count in values.shape if count > 1) - 1
    student = stats.t.ppf((1 + LEVEL) / 2, freedom) / stats.norm.ppf((1 + LEVEL) / 2)
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) * (wanted * student / spread)
    return Interval(mean, mean + float(low), mean + float(high))


def detectable(values: np.ndarray) -> float:
    """Least true difference that so many people and prompts find in four cases of five: 2.80 · √V."""
    return float(SCALE * np.sqrt(components(values).variance(*np.shape(values))))


def prompts_needed(values: np.ndarray, difference: float) -> int | None:
    """Prompts that would find a true `difference` in four cases of five with the same people; None: no number of prompts
    does, because people differ too much for so few of them.

    Solves SCALE² · V(P) = difference² for P.
    """
    found, num_people = components(values), len(values)
    room = (difference / SCALE) ** 2 - found.people / num_people
    if room <= 0:
        return None
    return max(2, int(np.ceil((found.prompts + found.rest / num_people) / room)))


def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of sample pairs in which a is better, a tie one half: a[..., m], b[..., n] → [...]; NaN where either is NaN."""
    a, b = np.asarray(a)[..., :, None], np.asarray(b)[..., None, :]
    won = np.where(a == b, 0.5, a > b)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, won).mean(axis=(-1, -2))


def length_controlled(won: np.ndarray, longer: np.ndarray) -> float:
    """Win rate if both answers were equally long: σ(θ) of the regression won[M] ~ σ(θ + γ · tanh(longer/sd)).

    Args:
      won: shares of wins in [0, 1]. longer: length of the one less length of the other, in any unit.

    NaN where one answer is the longer in every pair: equal length would lie outside all that was seen.

    Source: Dubois et al. 2024, Length-controlled AlpacaEval, arXiv:2404.04475. Differs: no term for the prompt's difficulty.
    """
    won, longer = np.ravel(won).astype(np.float64), np.ravel(longer).astype(np.float64)
    if longer.min() > 0 or longer.max() < 0:
        return np.nan
    spread = longer.std()
    feature = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    design = np.stack([np.ones_like(feature), feature], axis=1)
    weights = np.zeros(2)
    for _ in range(50):  # Newton; the ridge keeps separable wins finite
        chance = special.expit(design @ weights)
        gradient = design.T @ (won - chance) - RIDGE * weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return float(special.expit(weights[0]))


def worst(values: np.ndarray, share: float = 0.1) -> float:
    """Mean over the worst tenth of people (at least one) of values[U]."""
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[: max(1, int(np.ceil(share * len(ordered))))].mean())
