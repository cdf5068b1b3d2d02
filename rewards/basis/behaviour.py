"""δ = E[φ | behaviour] − E[φ | none] under the reference policy: the direction of a half-space rail.

Within prompts, so that what prompts differ in does not count: δ̂ is the mean over prompts of the difference between the mean φ of
answers that show the behaviour and of those that do not. Its covariance is that between prompts (answers of one prompt are
not independent), so intervals are honest with few prompts and many answers.

Letters in shapes: N answers, P prompts that have both kinds, K basis outputs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import t as student

from rewards.errors import UserError


class Difference(NamedTuple):
    """mean: δ̂[K]; cov: [K, K] of δ̂; low, high: [K], interval at `level`; prompts: P."""

    mean: np.ndarray
    cov: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    prompts: int


def difference(
    phi: Float[np.ndarray, "N K"],
    behaves: Bool[np.ndarray, " N"],
    prompt: Int[np.ndarray, " N"],
    level: float = 0.95,
) -> Difference:
    """δ̂ with Student intervals over prompts.

    Raises:
      UserError: fewer than two prompts have answers of both kinds.
    """
    gaps = []
    for one in np.unique(prompt):
        own = prompt == one
        yes, no = phi[own & behaves], phi[own & ~behaves]
        if len(yes) and len(no):
            gaps.append(yes.mean(axis=0, dtype=np.float64) - no.mean(axis=0, dtype=np.float64))
    if len(gaps) < 2:
        raise UserError(
            f"behaviour: {len(gaps)} prompts have answers with it and without, at least 2 are needed; give more answers"
        )
    each = np.array(gaps)
    mean, cov = each.mean(axis=0), np.atleast_2d(np.cov(each.T)) / len(each)
    reach = student.ppf(0.5 + level / 2, len(each) - 1) * np.sqrt(np.diag(cov))
    return Difference(mean, cov, mean - reach, mean + reach, level, len(each))
