"""Models refitted where the truth is known: nobody differs, everybody differs widely, and tastes of stated sizes.

The control worlds say whether a protocol can lose and can win at all (`controls`); the tastes of stated sizes say what
these people, questions and this model would have found had it been there.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from rewards.comparison import controls
from rewards.comparison.compare import AGGREGATE, Protocol, accuracy_after
from rewards.comparison.measures import bootstrap
from rewards.data.division import MAIN, Division
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.base import Comparisons, FittedModel, ItemTable, RewardModel
from rewards.methods.weighting import TrainingAnswers
from rewards.types import Preferences

HALF_POINT = 0.005
"""Accuracy gains below half a point are not worth a claim, nor an alarm on identical people."""
SIZES = (10, 20)
"""Planted tastes: percentage points by which knowing everybody's taste beats knowing only what all share."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How often and how far to ask.

    Attributes:
      counts: numbers of answers; draws: random orders of questions; seed: of orders, controls, intervals.
      controls: refit every model on identical people and on planted tastes.
    """

    counts: tuple[int, ...]
    draws: int = 5
    seed: int = 0
    controls: bool = True


Report = Callable[[str], None]
Weigh = Callable[[ItemTable, Preferences], TrainingAnswers]


Fit = tuple[FittedModel, float]


def fit_all(
    models: Mapping[str, RewardModel], table: ItemTable, training: TrainingAnswers, report: Report
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fitted models with their seconds, and why the others could not be fitted."""
    fits, failed = {}, {}
    for name, model in models.items():
        began = time.perf_counter()
        try:
            fitted = training.fit(model, table)
        except UserError as error:
            failed[name] = str(error)
            report(f"{name}: not fitted: {error}")
            continue
        fits[name] = fitted, time.perf_counter() - began
        report(f"{name}: fitted in {fits[name][1]:.1f} s")
    return fits, failed


def generic_margins(fitted: FittedModel, table: ItemTable) -> np.ndarray:
    """Margins of all comparisons for a person of whom nothing is known, float[N]."""
    everything = Comparisons.of(table.prefs, np.arange(table.prefs.num_comparisons)[None])
    nobody = Comparisons.of(table.prefs, np.full((1, 1), -1))
    return np.asarray(fitted.margins(table, fitted.adapt(table, nobody), everything))[0]


def interval_of(values: np.ndarray, seed: int) -> dict[str, float]:
    """{mean, low, high} over the people who have a value."""
    return dataclasses.asdict(bootstrap(values[~np.isnan(values)], jax.random.key(seed)))


@dataclasses.dataclass(frozen=True)
class Worlds:
    """The comparison's people, questions and models with other answers."""

    table: ItemTable
    divisions: Sequence[Division]
    settings: Settings
    weigh: Weigh
    report: Report

    def controlled(self, models: Mapping[str, RewardModel], margin: np.ndarray) -> dict[str, JSONObject]:
        """model → control → {gain, passed}: every model refitted on identical people and on planted tastes.

        Args:
          margin: float[N], by which identical people answer.
        """
        seed = self.settings.seed
        planted = controls.planted_tastes(self.table.prefs, self.table, seed)
        worlds = {
            "identical_people": controls.identical_people(self.table.prefs, margin, seed),
            "planted_tastes": planted.prefs,
        }
        found: dict[str, JSONObject] = {name: {} for name in models if name != AGGREGATE}
        for world, prefs in worlds.items():
            right, failed = self.refitted(models, prefs, world)
            for name in found:
                found[name][world] = (
                    _control(world, *right[name], right[AGGREGATE][1], seed)
                    if name in right and AGGREGATE in right
                    else {
                        "passed": False,
                        "reason": failed.get(name, "the aggregate model could not be fitted"),
                    }
                )
        tested = np.any([division.tests[MAIN] for division in self.divisions], axis=0)
        for name in found:
            found[name]["planted_tastes"]["best_possible"] = planted.best(tested)
        return found

    def sizes(self, models: Mapping[str, RewardModel], judged: str) -> list[JSONObject]:
        """For each of SIZES: points, gain, learned, and whether both are shown to be above zero."""
        found = []
        for points in SIZES:
            seed = self.settings.seed
            planted = controls.planted_tastes(self.table.prefs, self.table, seed, worth=points / 100)
            right, failed = self.refitted(models, planted.prefs, f"tastes worth {points} points")
            if failed:
                continue
            one = _control("planted_tastes", *right[judged], right[AGGREGATE][1], seed)
            found.append({"points": points, "found": one.pop("passed")} | one)
        return found

    def refitted(
        self, models: Mapping[str, RewardModel], prefs: Preferences, world: str
    ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, str]]:
        """Accuracy of everybody before any answer and after `answers` of them, and why models could not be fitted."""
        answered = dataclasses.replace(self.table, prefs=prefs)
        parts: dict[str, list[list[np.ndarray]]] = {}
        unavailable: dict[str, str] = {}
        for division in self.divisions:
            training = self.weigh(answered, prefs.select(division.training))
            fits, failed = fit_all(models, answered, training, lambda line: self.report(f"{world}: {line}"))
            unavailable |= failed
            draws = min(2, self.settings.draws)
            protocol = Protocol.build(prefs, division, self.settings.counts, draws, self.settings.seed)
            for name, (fitted, _) in fits.items():
                right = [accuracy_after(fitted, answered, protocol, n) for n in (0, protocol.answers)]
                parts.setdefault(name, []).append(right)
        joined = {
            name: (np.concatenate([part[0] for part in folds]), np.concatenate([part[1] for part in folds]))
            for name, folds in parts.items()
            if name not in unavailable
        }
        return joined, unavailable


def _control(
    world: str, before: np.ndarray, after: np.ndarray, aggregate: np.ndarray, seed: int
) -> JSONObject:
    """Identical people: a gain shown to exceed half a point fails. Planted tastes: passed when answers are shown
    to help, against the aggregate model and against the model itself before any answer."""
    gain, learned = interval_of(after - aggregate, seed), interval_of(after - before, seed)
    passed = (
        gain["low"] <= HALF_POINT if world == "identical_people" else min(gain["low"], learned["low"]) > 0
    )
    return {"gain": gain, "learned": learned, "passed": bool(passed)}
