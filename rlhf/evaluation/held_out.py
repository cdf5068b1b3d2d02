"""People never seen, after a few questions: the one replay behind every evaluation of a policy."""

import jax
import numpy as np

from rewards.basis.store import FittedBasis
from rewards.comparison import replay
from rewards.data.split import last_choices
from rewards.types import Preferences


def asked(
    rewards: FittedBasis,
    prefs: Preferences,
    phi: np.ndarray,
    held: np.ndarray,
    people: np.ndarray,
    *,
    answers: int,
    last: int,
    seed: int,
) -> replay.ColdStart:
    """Coefficients of held-out people after `answers` questions chosen among their recorded choices by what they teach.

    Args:
      phi: float[I, K] of every item. held: bool[N], comparisons of held-out people. people: whom of them, as user indices.
      last: choices at the end of everybody's record that are predicted and never asked.
    """
    return replay.cold_start(
        rewards.prior,
        prefs,
        phi,
        last_choices(prefs, last) & held,
        key=jax.random.key(seed),
        people=people,
        counts=(answers,),
        method="information",
        lapse=rewards.lapse,
    )
