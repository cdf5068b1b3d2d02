"""How to spend a budget of labels: how many raters, and how many pairs each.

With N labels from m raters, n = N/m each, held-out people (who answer some pairs of their own) are predicted with
accuracy (oracle − loss), where on the measured grid

    loss ≈ a · D K/N + b · K/m + c · K/n

The three terms are the directions φ learned from N labels, tastes that too few raters do not span, and w_u
fitted to few labels as a point (joint MAP); a, b, c ≥ 0 by least squares on the table below. A fit that averages
over w_u (`marginalised`, the default of `fit_basis`) does not pay the third term in full.

Letters: N labels, m raters, n pairs a rater, K basis outputs, D embedding dimensions.
"""

import dataclasses
import functools

import numpy as np
from scipy.optimize import nnls

from rewards.errors import UserError
from rewards.files import JSONObject

AUDIT_SHARE = 0.125
"""Labels spent on repeats of earlier questions in the other order: 10–15 %, to estimate π, κ and e."""

FLAT = 0.005  # accuracies closer than this are the same plan
FEWEST_PAIRS = 8  # a rater who answers less costs more to find than their labels are worth


@dataclasses.dataclass(frozen=True)
class Law:
    """Measured accuracy on held-out people by number of raters at one budget.

    `spread` is the standard deviation of every coefficient over people, `answers` what a held-out person gives.
    """

    labels: int
    num_basis: int
    dims: int
    spread: float
    answers: int
    raters: tuple[int, ...]
    accuracy: tuple[float, ...]
    oracle: float
    source: str


# Simulated people with w_u ~ N(mean, 1) over D = 32, K = 4, 100 held-out people adapting on 40 pairs each; joint MAP.
MEASURED = Law(
    labels=6000,
    num_basis=4,
    dims=32,
    spread=1.0,
    answers=40,
    raters=(6, 15, 30, 60, 150, 600, 2000),
    accuracy=(0.778, 0.797, 0.802, 0.804, 0.804, 0.779, 0.732),
    oracle=0.81,
    source="simulated label-budget experiment, joint MAP fit",
)


def plan(
    labels: int,
    *,
    num_basis: int = MEASURED.num_basis,
    dims: int = MEASURED.dims,
    spread: float = MEASURED.spread,
    raters: int | None = None,
    law: Law = MEASURED,
) -> JSONObject:
    """How many raters and pairs each for a budget, and what other divisions would cost.

    Args:
      labels: N, repeats for the audit included.
      num_basis, dims: K and D of the fit.
      spread: how far people's coefficients spread, in the units of the measurement (1); smaller tastes leave less
        to lose by few raters, and need more labels a person to be seen.
      raters: a number of raters given in advance; None chooses.
    Returns:
      JSON: `labels`, `audit_repeats`, `distinct_pairs` (N less the repeats), `raters`, `pairs_per_rater`,
      `repeats_per_rater`, `loss` (accuracy under the oracle basis), `best_raters`, `flat` (fewest and most
      raters within 0.005 of the best), `table` of divisions, `law` (constants, source, whether the budget is
      outside what was measured), `advice`.
    Raises:
      UserError: a budget too small for two raters, or numbers out of range.
    """
    _check(labels, num_basis, dims, spread, raters)
    repeats = round(AUDIT_SHARE * labels)
    distinct = labels - repeats
    grid = np.unique(np.round(np.geomspace(2, max(2, distinct // FEWEST_PAIRS), 200)).astype(int))
    losses = predicted_loss(distinct, grid, num_basis, dims, spread, law)
    best = int(grid[np.argmin(losses)])
    within = grid[losses <= losses.min() + FLAT]
    chosen = best if raters is None else raters
    loss = float(predicted_loss(distinct, np.array([chosen]), num_basis, dims, spread, law)[0])
    shown = sorted({*(int(grid[i]) for i in np.linspace(0, len(grid) - 1, 8).astype(int)), best, chosen})
    return {
        "labels": labels,
        "audit_repeats": repeats,
        "distinct_pairs": distinct,
        "raters": chosen,
        "pairs_per_rater": distinct // chosen,
        "repeats_per_rater": repeats // chosen,
        "loss": loss,
        "best_raters": best,
        "flat": [int(within[0]), int(within[-1])],
        "table": [
            {"raters": m, "pairs_per_rater": distinct // m, "loss": float(value)}
            for m, value in zip(
                shown, predicted_loss(distinct, np.array(shown), num_basis, dims, spread, law), strict=True
            )
        ],
        "law": _law_record(distinct, num_basis, dims, spread, law),
        "advice": _advice(chosen, distinct, loss, float(losses.min()), within),
    }


def predicted_loss(
    labels: int, raters: np.ndarray, num_basis: int, dims: int, spread: float, law: Law = MEASURED
) -> np.ndarray:
    """Accuracy lost against the oracle basis, at most down to a coin; float[m].

    Spread enters as the signal a label carries about a taste: tastes not spanned weigh spread² (in units of the
    measured one), labels a person count spread² each. This is scaling, not measurement.
    """
    signal = (spread / law.spread) ** 2
    terms = _terms(labels, np.asarray(raters, float), num_basis, dims)
    terms[:, 1] *= min(signal, 1.0)
    terms[:, 2] /= max(signal, 1e-6)
    return np.minimum(terms @ constants(law), law.oracle - 0.5)


@functools.cache
def constants(law: Law = MEASURED) -> np.ndarray:
    """a, b, c of the law by non-negative least squares."""
    terms = _terms(law.labels, np.array(law.raters, float), law.num_basis, law.dims)
    return nnls(terms, law.oracle - np.array(law.accuracy))[0]


def _terms(labels: int, raters: np.ndarray, num_basis: int, dims: int) -> np.ndarray:
    directions = np.full(len(raters), dims * num_basis / labels)
    return np.stack([directions, num_basis / raters, num_basis * raters / labels], axis=1)


def _law_record(labels: int, num_basis: int, dims: int, spread: float, law: Law) -> JSONObject:
    a, b, c = (float(value) for value in constants(law))
    fitted = predicted_loss(law.labels, np.array(law.raters), law.num_basis, law.dims, law.spread, law)
    worst = float(np.max(np.abs(fitted - (law.oracle - np.array(law.accuracy)))))
    same = (num_basis, dims, spread) == (law.num_basis, law.dims, law.spread)
    return {
        "constants": {"directions": a, "raters": b, "pairs": c},
        "worst_residual": worst,
        "measured_at": {"labels": law.labels, "num_basis": law.num_basis, "dims": law.dims},
        "source": law.source,
        "extrapolated": not (same and 0.5 <= labels / law.labels <= 2.0),
    }


def _advice(chosen: int, labels: int, loss: float, least: float, flat: np.ndarray) -> str:
    n = labels // chosen
    text = f"{chosen} raters × {n} pairs"
    if loss <= least + FLAT:
        return f"{text}; anything from {flat[0]} to {flat[-1]} raters does as well"
    side = "more raters with fewer pairs each" if chosen < flat[0] else "fewer raters with more pairs each"
    return (
        f"{text} loses {loss - least:.3f} of accuracy against {flat[0]} to {flat[-1]} raters: take {side}"
        + (", or a marginalised fit" if chosen > flat[-1] else "")
    )


def _check(labels: int, num_basis: int, dims: int, spread: float, raters: int | None) -> None:
    for name, value, least in (("num_basis", num_basis, 1), ("dims", dims, 1)):
        if value < least:
            raise UserError(f"{name} {value}: must be at least {least}")
    if not (np.isfinite(spread) and spread > 0):
        raise UserError(f"spread {spread}: must be above 0; 1 is the measured spread")
    if labels < 4 * FEWEST_PAIRS:
        raise UserError(f"labels {labels}: too few for two raters; plan at least {4 * FEWEST_PAIRS}")
    if raters is not None and not 2 <= raters <= labels - round(AUDIT_SHARE * labels):
        raise UserError(
            f"raters {raters}: must be at least 2 and at most the {labels - round(AUDIT_SHARE * labels)} "
            "pairs there are"
        )
