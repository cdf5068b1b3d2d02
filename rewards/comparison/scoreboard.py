"""The table of a comparison: every model against the aggregate one, with controls, ending in one sentence.

`compare` fits each model on the training cell, replays people outside it (`compare.score_model`) and repeats
the main cell on the two control worlds (`controls`). Figures are means over people with 95 % intervals that
resample people; gains are differences to the aggregate model person by person.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from rewards.comparison import controls
from rewards.comparison.compare import (
    AGGREGATE,
    IGNORES,
    Protocol,
    Scores,
    accuracy_after,
    score_model,
)
from rewards.comparison.measures import bootstrap, person_accuracy
from rewards.comparison.power import RELEVANT, Power, cannot_show, power
from rewards.data.division import CELLS, MAIN, Division
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.base import Comparisons, FittedModel, ItemTable, RewardModel
from rewards.methods.weighting import TrainingAnswers
from rewards.types import Preferences

HALF_POINT = 0.005
"""Accuracy gains below half a point are not worth a claim, nor an alarm on identical people."""
WORST_SHARE = 0.1


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


def compare(
    models: Mapping[str, RewardModel],
    table: ItemTable,
    division: Division,
    settings: Settings,
    *,
    judged: str,
    weigh: Weigh = lambda table, training: TrainingAnswers(training),
    report: Report = lambda line: None,
) -> JSONObject:
    """Fit, replay and control every model; `models` must hold "aggregate".

    A model that cannot be fitted on this data is listed under `unavailable` with its reason.

    Args:
      judged: the model that the closing sentence is about, chosen before looking.
      weigh: what the training comparisons count, asked once for the data and once for each control world; all
        models are fitted on the same answer.
      report: called with one line a model.
    Raises:
      UserError: the aggregate or the judged model cannot be fitted.
    """
    prefs = table.prefs
    protocol = Protocol.build(prefs, division, settings.counts, settings.draws, settings.seed)
    fits, unavailable = _fit_all(models, table, weigh(table, prefs.select(division.training)), report)
    for name in (AGGREGATE, judged):
        if name not in fits:
            raise UserError(
                f"evaluation.models: {name} could not be fitted: {unavailable.get(name, 'not given')}"
            )
    scores = {}
    for name, (fitted, _) in fits.items():
        scores[name] = score_model(fitted, table, protocol)
        mean = np.nanmean(scores[name].accuracy[protocol.answers])
        report(f"{name}: accuracy {mean:.3f} after {protocol.answers} answers")
    board: JSONObject = {
        "judged": judged,
        "answers": protocol.answers,
        "people": int(np.sum(~np.isnan(scores[AGGREGATE].cells[MAIN]))),
        "missing_cells": division.missing,
        "unavailable": unavailable,
        "models": {
            name: summarise(one, scores[AGGREGATE], protocol.answers, settings.seed)
            | {"fit_seconds": fits[name][1]}
            for name, one in scores.items()
        },
        "base_rewards": _base(prefs, protocol, scores[AGGREGATE], settings.seed),
    }
    if settings.controls:
        margin = generic_margins(fits[AGGREGATE][0], table)
        fitting = {name: models[name] for name in scores}
        for name, values in _controlled(fitting, table, division, settings, margin, weigh, report).items():
            board["models"][name]["controls"] = values
    ours = scores[judged].accuracy[protocol.answers]
    for name, values in board["models"].items():
        lead = ours - scores[name].accuracy[protocol.answers]
        values["judged_minus"] = _interval(lead, settings.seed)
    board["best"] = best_of(board)
    board["helps"] = helps(board)
    tested = division.tests[MAIN]
    board["tested_choices"] = max(1, round(float(tested.sum()) / max(board["people"], 1)))
    board["power"] = power_of(board)._asdict()
    board["status"] = status(board)
    board["sentence"] = sentence(board)
    return board


Fit = tuple[FittedModel, float]


def _fit_all(
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


def summarise(own: Scores, aggregate: Scores, answers: int, seed: int) -> JSONObject:
    """What the table says about one model; intervals are {mean, low, high}."""
    interval = functools.partial(_interval, seed=seed)
    reference = aggregate.accuracy[answers]
    gain = own.accuracy[answers] - reference
    present = gain[~np.isnan(gain)]
    cells = {
        cell: {
            "accuracy": interval(own.cells[cell]),
            "gain": interval(own.cells[cell] - aggregate.cells[cell]),
            "people": int(np.sum(~np.isnan(own.cells[cell]))),
        }
        for cell in CELLS
        if cell in own.cells
    }
    result: JSONObject = {
        "accuracy": {n: interval(values) for n, values in own.accuracy.items()},
        "gain": {n: interval(values - aggregate.accuracy[n]) for n, values in own.accuracy.items()},
        "loss_nats": {n: interval(values) for n, values in own.loss.items()},
        "cells": cells,
        "swapped": interval(own.swapped),
        "own_minus_swapped": interval(own.accuracy[answers] - own.swapped),
        "swap_flip_rate": interval(own.swap_flips),
        "label_flip_rate": interval(own.label_flips),
        "swap_change": own.change,
        "ignores_user": own.change < IGNORES,
        "worst_decile": worst_decile(own.accuracy[answers]),
        "worst_decile_aggregate": worst_decile(reference),
        "gaining": float(np.mean(present > 1e-9)),
        "losing": float(np.mean(present < -1e-9)),
    }
    result["enough_answers"] = enough_answers({n: g for n, g in result["gain"].items() if n <= answers})
    if own.chosen is not None:
        result["accuracy_chosen"] = {n: interval(values) for n, values in own.chosen.items()}
        result["gain_chosen"] = {n: interval(v - aggregate.accuracy[n]) for n, v in own.chosen.items()}
    return result


def _interval(values: np.ndarray, seed: int) -> dict[str, float]:
    """{mean, low, high} over the people who have a value."""
    return dataclasses.asdict(bootstrap(values[~np.isnan(values)], jax.random.key(seed)))


def worst_decile(values: np.ndarray) -> float:
    """Mean accuracy of the tenth of people who are predicted worst, at least one person."""
    values = np.sort(values[~np.isnan(values)])
    return float(values[: max(1, round(WORST_SHARE * len(values)))].mean())


def enough_answers(gain: dict[int, dict[str, float]]) -> int | None:
    """The smallest number of answers, at least one, from which on every gain's interval lies above zero.

    None: there is none. A gain without any answer is a better model, not a personal one.
    """
    found = None
    for n in sorted((n for n in gain if n > 0), reverse=True):
        if gain[n]["low"] <= 0:
            break
        found = n
    return found


def _base(prefs: Preferences, protocol: Protocol, aggregate: Scores, seed: int) -> JSONObject:
    """Accuracy and gain of scores that know no people."""
    tests, found = protocol.new[MAIN], {}
    for name, score in controls.base_rewards(prefs, protocol.division.training).items():
        values = person_accuracy(score[tests.chosen] - score[tests.rejected], tests)
        gain = values - aggregate.accuracy[protocol.answers]
        found[name] = {"accuracy": _interval(values, seed), "gain": _interval(gain, seed)}
    return found


def _controlled(
    models: Mapping[str, RewardModel],
    table: ItemTable,
    division: Division,
    settings: Settings,
    margin: np.ndarray,
    weigh: Weigh,
    report: Report,
) -> dict[str, JSONObject]:
    """model → control → {gain, passed}: every model refitted on identical people and on planted tastes."""
    planted = controls.planted_tastes(table.prefs, table, settings.seed)
    worlds = {
        "identical_people": controls.identical_people(table.prefs, margin, settings.seed),
        "planted_tastes": planted.prefs,
    }
    found: dict[str, JSONObject] = {name: {} for name in models if name != AGGREGATE}
    for world, prefs in worlds.items():
        answered = dataclasses.replace(table, prefs=prefs)
        training = weigh(answered, prefs.select(division.training))
        fits, failed = _fit_all(
            models, answered, training, lambda line, world=world: report(f"{world}: {line}")
        )
        draws = min(2, settings.draws)
        protocol = Protocol.build(prefs, division, settings.counts, draws, settings.seed)
        right = {
            name: [accuracy_after(fits[name][0], answered, protocol, n) for n in (0, protocol.answers)]
            for name in fits
        }
        for name in found:
            found[name][world] = (
                _control(world, *right[name], right[AGGREGATE][1], settings.seed)
                if name in right and AGGREGATE in right
                else {"passed": False, "reason": failed.get(name, "the aggregate model could not be fitted")}
            )
    for name in found:
        found[name]["planted_tastes"]["best_possible"] = planted.best(division.tests[MAIN])
    return found


def _control(
    world: str, before: np.ndarray, after: np.ndarray, aggregate: np.ndarray, seed: int
) -> JSONObject:
    """Identical people: a gain shown to exceed half a point fails. Planted tastes: passed when answers are shown
    to help, against the aggregate model and against the model itself before any answer."""
    gain, learned = _interval(after - aggregate, seed), _interval(after - before, seed)
    passed = (
        gain["low"] <= HALF_POINT if world == "identical_people" else min(gain["low"], learned["low"]) > 0
    )
    return {"gain": gain, "learned": learned, "passed": bool(passed)}


def best_of(board: JSONObject) -> str:
    """The model with the highest accuracy after `answers` answers."""
    answers = board["answers"]
    return max(board["models"], key=lambda name: board["models"][name]["accuracy"][answers]["mean"])


def helps(board: JSONObject) -> bool:
    """The judged model listens to the person, beats the aggregate one after `answers` answers, and beats itself
    with another person's answers; the last two by intervals above zero."""
    own = board["models"][board["judged"]]
    gain, swap = own["gain"][board["answers"]], own["own_minus_swapped"]
    return bool(not own["ignores_user"] and gain["low"] > 0 and swap["low"] > 0)


def power_of(board: JSONObject) -> Power:
    """What the people of the comparison could have shown of the judged model against the aggregate one."""
    gain = board["models"][board["judged"]]["gain"][board["answers"]]
    return power(gain["low"], gain["high"], board["people"], choices=board["tested_choices"])


def status(board: JSONObject) -> str:
    """won, lost or unknown: not shown, though so few people could hardly have shown it."""
    own = board["models"][board["judged"]]
    if board["helps"]:
        return "won"
    harmed = own["gain"][board["answers"]]["high"] < 0 or own["own_minus_swapped"]["high"] < 0
    if own["ignores_user"] or harmed or Power(**board["power"]).shows(RELEVANT):
        return "lost"
    return "unknown"


def sentence(board: JSONObject) -> str:
    """One sentence: whether personalisation helps on this data, for whom, after how many answers."""
    answers, name = board["answers"], board["judged"]
    own, general = board["models"][name], board["models"][AGGREGATE]
    gain = own["gain"][answers]
    figures = (
        f"{own['accuracy'][answers]['mean']:.1%} of the choices of {board['people']} people never seen are "
        f"predicted after {answers} random questions against {general['accuracy'][answers]['mean']:.1%} by one "
        f"model for everybody ({gain['mean']:+.1%}, 95 % {gain['low']:+.1%} to {gain['high']:+.1%}); "
        f"{own['gaining']:.0%} of people gain and {own['losing']:.0%} lose, and the worst-predicted tenth stands "
        f"at {own['worst_decile']:.0%} (one model: {own['worst_decile_aggregate']:.0%})"
    )
    if board["helps"]:
        enough = own["enough_answers"]
        when = f"from {enough} {'answer' if enough == 1 else 'answers'} on"
        return f"Personalisation helps on this data ({name}), {when}: {figures}."
    reason = "it is not shown to beat one model for everybody"
    if own["ignores_user"]:
        reason = "the model ignores the user, whose answers another person's may replace without any change"
    elif gain["low"] > 0:
        reason = "another person's answers serve as well as one's own"
    if board.get("status") == "unknown":
        return f"Unknown: {cannot_show(Power(**board['power']))}. On this data ({name}) {reason}; {figures}."
    return f"Personalisation lost on this data ({name}): {reason}; {figures}."
