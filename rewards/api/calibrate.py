"""calibration.json of a reward run: how much wider than Laplace's an honest error bar is, by number of answers."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from rewards import hashed
from rewards.basis.belief import Belief
from rewards.basis.store import RewardRun
from rewards.comparison.measures import padded_rows
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.people import calibration
from rewards.types import Preferences

if TYPE_CHECKING:  # it brings scikit-learn, seconds that a question to somebody does not need
    from rewards.methods.linear import LinearFitted

FILE = "calibration.json"
COUNTS = (1, 2, 5, 10, 20, 40)
PEOPLE = 2000  # simulated; a coverage of 95 % is then known to ± 1 %
MIN_PEOPLE = 10  # whose answered pairs say what gets asked


def simulate(
    train: Preferences, phi: np.ndarray, fitted: "LinearFitted", seed: int
) -> calibration.Calibration | None:
    """Simulate people who answer the pairs that training people answered; None when too few answered any."""
    answers = np.bincount(train.user_index, minlength=train.num_users)
    counts = tuple(n for n in COUNTS if np.sum(answers >= n) >= MIN_PEOPLE)
    if not counts:
        return None
    rows = padded_rows(
        train.user_index, np.ones(train.num_comparisons, bool), np.flatnonzero(answers >= counts[-1])
    )
    rows = rows[np.arange(PEOPLE) % len(rows), : counts[-1]]
    delta = phi[train.chosen] - phi[train.rejected]
    draw_key, fit_key = jax.random.split(jax.random.key(seed))
    some = np.asarray(jax.random.choice(draw_key, len(delta), (min(500, len(delta)),), replace=False))
    return calibration.fit_scale(
        fitted.prior, delta[rows], delta[some], counts, key=fit_key, lapse=fitted.rule.lapse
    )


def read(run: RewardRun) -> calibration.Calibration | None:
    """The calibration of a stored run; None if it has none.

    Raises:
      UserError: it is damaged or of another basis.
    """
    path = run.directory / FILE
    if not path.is_file():
        return None

    def parse(content: JSONObject) -> calibration.Calibration:
        if content.get("basis") != run.hash:
            raise UserError(f"{path}: not of this run's basis; fit the rewards again")
        return calibration.Calibration.from_json(content, str(path))

    return hashed.parse_record(path, "fit the rewards again", parse)


def widened(found: calibration.Calibration | None, posterior: Belief) -> np.ndarray:
    """Standard deviation along every axis, float64[K]; without a calibration Laplace's own, somewhat small."""
    if found is not None:
        posterior = found.scaled(posterior, of="margin")
    return posterior.sd
