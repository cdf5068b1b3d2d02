"""What a number of people could have shown: the smallest difference that the test in use finds in four cases of five.

By planted differences. People are drawn whose gains scatter as those that were measured, s = half-width/q · √U · √(U/(U−1)),
q the quantile that made the interval;
each is given a gain of δ, which of T tested choices turns Binomial(T, δ) right; then the test is made as in a report (`measures.
bootstrap`): Student's interval of few people, percentiles over resampled ones of many, won where its lower end lies above 0.
The least δ that wins in POWER of
DRAWS is the answer. No difference below it was excluded by a test that was not won.
"""

from typing import NamedTuple

import numpy as np

from rewards.comparison.measures import FEW, half_width, quantile

POWER = 0.8
DRAWS, RESAMPLES = 400, 200
MANY = 300
"""From so many people on the normal approximation (1.96 + 0.84) · s/√U is used; it differs by less than the rounding."""
RELEVANT = 0.10
"""A difference in accuracy that would have been found with POWER, or else a test that was not won says nothing."""
RELEVANT_NATS = 0.4
"""The same in rewards: 0.4 nats of log-odds turn at most ten choices in a hundred."""


DISAGREE = 0.2
"""Share of choices that a model which listens predicts otherwise than one for everybody, at least."""


def least_half_width(people: int, choices: int) -> float:
    """Half-width of an interval over people who do not differ, by the noise of DISAGREE of `choices` choices alone.

    A person's difference in accuracy then has the variance DISAGREE / choices. A model that never disagreed shows no noise, but
    one that had found something would.
    """
    return quantile(people) * float(np.sqrt(DISAGREE / max(choices, 1) / max(people, 1)))


class Power(NamedTuple):
    """people: U. detectable: least difference found with probability POWER, in the unit of the gains; None if none is."""

    people: int
    detectable: float | None

    def shows(self, relevant: float) -> bool:
        """Whether a relevant difference would have been found."""
        return self.detectable is not None and self.detectable <= relevant


def power(low: float, high: float, people: int, *, choices: int | None = None) -> Power:
    """Power of a paired comparison over people.

    Args:
      low, high: its 95 % interval over people. choices: T, tested choices of each; None plants δ itself, for gains without
        an upper end (rewards in nats).
    """
    if people < 2:
        return Power(people, None)
    spread = (high - low) / 2 / quantile(people) * np.sqrt(people)
    if people >= MANY:
        return Power(people, float((1.96 + 0.84) * spread / np.sqrt(people)))
    if people >= FEW:  # percentiles see √((U−1)/U) of it
        spread *= np.sqrt(people / (people - 1))
    highest = 1.0 if choices is not None else float(20 * spread)
    if highest == 0.0:
        return Power(people, 0.0)
    if _wins(highest, spread, people, choices) < POWER:
        return Power(people, None)
    below, above = 0.0, highest
    for _ in range(8):
        middle = (below + above) / 2
        if _wins(middle, spread, people, choices) >= POWER:
            above = middle
        else:
            below = middle
    return Power(people, above)


def _wins(delta: float, spread: float, people: int, choices: int | None) -> float:
    """Share of planted worlds in which the test is won; the same random numbers at every δ."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 1.0, (DRAWS, people)) * spread
    weights = (
        rng.multinomial(people, np.full(people, 1 / people), RESAMPLES) / people
    )  # drawn first, whoever they serve
    if choices is None:
        gains = noise + delta
    else:
        gains = noise + (rng.random((DRAWS, people, choices)) < delta).mean(axis=2)
    if people < FEW:
        low = gains.mean(axis=1) - half_width(gains)
    else:
        low = np.quantile(gains @ weights.T, 0.025, axis=1)
    return float(np.mean(low > 0))


def cannot_show(found: Power, unit: str = "points") -> str:
    """So many people cannot show a difference below …"""
    who = f"{found.people} {'person' if found.people == 1 else 'people'} cannot show"
    if found.detectable is None:
        return f"{who} a difference of any size"
    size = f"{100 * found.detectable:.0f}" if unit == "points" else f"{found.detectable:.2f}"
    return f"{who} a difference below {size} {unit}"
