"""The table of a comparison: every model against the aggregate one, with controls, ending in one sentence.

`compare` fits each model on the training cell, replays people outside it (`compare.score_model`) and repeats
the main cell on the two control worlds (`controls`). Figures are means over people with 95 % intervals that
resample people; gains are differences to the aggregate model person by person.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from rewards.comparison import controls
from rewards.comparison.compare import AGGREGATE, IGNORES, Protocol, Scores, score_model
from rewards.comparison.judging import best_of, found_no_taste, helps, power_of, sentence, status
from rewards.comparison.measures import person_accuracy
from rewards.comparison.references import REFERENCES, fit_references
from rewards.comparison.worlds import (
    Report,
    Settings,
    Weigh,
    Worlds,
    fit_all,
    generic_margins,
    interval_of,
)
from rewards.data.division import CELLS, MAIN, Division
from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.methods.base import ItemTable, RewardModel
from rewards.methods.weighting import TrainingAnswers
from rewards.types import Preferences

WORST_SHARE = 0.1


def compare(
    models: Mapping[str, RewardModel],
    table: ItemTable,
    divisions: Division | Sequence[Division],
    settings: Settings,
    *,
    judged: str,
    weigh: Weigh = lambda table, training: TrainingAnswers(training),
    report: Report = lambda line: None,
) -> JSONObject:
    """Fit, replay and control every model; `models` must hold "aggregate".

    A model that cannot be fitted on this data is listed under `unavailable` with its reason.

    Args:
      divisions: one, or one for each fold of people, each of whom is then held out once.
      judged: the model that the closing sentence is about, chosen before looking.
      weigh: what the training comparisons count, asked once for the data and once for each control world; all
        models are fitted on the same answer.
      report: called with one line a model.
    Raises:
      UserError: the aggregate or the judged model cannot be fitted.
    """
    divisions = (divisions,) if isinstance(divisions, Division) else tuple(divisions)
    prefs = table.prefs
    protocols = [
        Protocol.build(prefs, division, settings.counts, settings.draws, settings.seed)
        for division in divisions
    ]
    folds = len(divisions)
    parts: list[dict[str, Scores]] = []
    silent = True
    margin, seconds, unavailable = np.zeros(prefs.num_comparisons), dict.fromkeys(models, 0.0), {}
    for number, (division, protocol) in enumerate(zip(divisions, protocols, strict=True)):
        said = (
            (lambda line, number=number: report(f"people {number + 1}/{folds}: {line}"))
            if folds > 1
            else report
        )
        training = weigh(table, prefs.select(division.training))
        fits, failed = fit_all(models, table, training, said)
        unavailable |= failed
        for name in (AGGREGATE, judged):
            if name not in fits:
                raise UserError(
                    f"evaluation.models: {name} could not be fitted: {unavailable.get(name, 'not given')}"
                )
        silent = silent and found_no_taste(fits[judged][0])
        counted = fit_references(table, training.prefs, training.weight, settings.seed)
        margin += generic_margins(fits[AGGREGATE][0], table) / folds
        scored = {}
        for name, fitted in ({name: fit for name, (fit, _) in fits.items()} | counted).items():
            scored[name] = score_model(fitted, table, protocol)
            mean = np.nanmean(scored[name].accuracy[protocol.answers])
            said(f"{name}: accuracy {mean:.3f} after {protocol.answers} answers")
        for name, (_, spent) in fits.items():
            seconds[name] += spent
        parts.append(scored)
    everywhere = [name for name in models if all(name in part for part in parts)]
    people = [protocol.people for protocol in protocols]
    scores = {
        name: Scores.merged([part[name] for part in parts], people) for name in (*everywhere, *REFERENCES)
    }
    answers = protocols[0].answers
    summaries = {
        name: summarise(one, scores[AGGREGATE], answers, settings.seed) for name, one in scores.items()
    }
    ours = scores[judged].accuracy[answers]
    for name, values in summaries.items():
        values["judged_minus"] = interval_of(ours - scores[name].accuracy[answers], settings.seed)
    tested = int(sum(division.tests[MAIN].sum() for division in divisions))
    num_people = int(np.sum(~np.isnan(scores[AGGREGATE].cells[MAIN])))
    board: JSONObject = {
        "judged": judged,
        "answers": answers,
        "people": num_people,
        "folds": folds,
        "silent": silent,
        "missing_cells": divisions[0].missing,
        "unavailable": unavailable,
        "models": {name: summaries[name] | {"fit_seconds": seconds[name]} for name in everywhere},
        "references": {name: summaries[name] for name in REFERENCES},
        "base_rewards": _base(prefs, protocols, scores[AGGREGATE], settings.seed),
        "repeated_texts": _repeated(scores[judged], scores[AGGREGATE], settings.seed),
        "tested_choices": max(1, round(tested / max(num_people, 1))),
    }
    if settings.controls:
        worlds = Worlds(table, divisions, settings, weigh, report)
        fitting = {name: models[name] for name in everywhere}
        for name, values in worlds.controlled(fitting, margin).items():
            board["models"][name]["controls"] = values
        if judged != AGGREGATE:
            both = {name: models[name] for name in (AGGREGATE, judged)}
            board["planted"] = worlds.sizes(both, judged)
    board["best"] = best_of(board)
    board["helps"] = helps(board)
    board["power"] = power_of(board)._asdict()
    board["status"] = status(board)
    board["sentence"] = sentence(board)
    return board


def _repeated(own: Scores, aggregate: Scores, seed: int) -> JSONObject:
    """Share of the tested comparisons that hold a text of a question, and the judged model's gain on the others."""
    tested = ~np.isnan(own.fresh_share)
    left = own.fresh - aggregate.fresh
    found: JSONObject = {
        "share": float(np.mean(1 - own.fresh_share[tested])),
        "people": int(np.sum(~np.isnan(left))),
    }
    if found["people"] > 1:
        found["gain_without"] = interval_of(left, seed)
    return found


def summarise(own: Scores, aggregate: Scores, answers: int, seed: int) -> JSONObject:
    """What the table says about one model; intervals are {mean, low, high}."""
    interval = functools.partial(interval_of, seed=seed)
    reference = aggregate.accuracy[answers]
    gain = own.accuracy[answers] - reference
    present = gain[~np.isnan(gain)]
    cells = {
        cell: {
            "accuracy": interval(own.cells[cell]),
            "gain": interval(own.cells[cell] - aggregate.cells[cell]),
            "loss_nats": interval(own.cell_loss[cell]),
            "loss_gain": interval(aggregate.cell_loss[cell] - own.cell_loss[cell]),
            "people": int(np.sum(~np.isnan(own.cells[cell]))),
        }
        for cell in CELLS
        if cell in own.cells
    }
    result: JSONObject = {
        "accuracy": {n: interval(values) for n, values in own.accuracy.items()},
        "gain": {n: interval(values - aggregate.accuracy[n]) for n, values in own.accuracy.items()},
        "loss_nats": {n: interval(values) for n, values in own.loss.items()},
        "learned": interval(own.accuracy[answers] - own.accuracy[min(own.accuracy)]),
        "loss_gain": interval(aggregate.loss[answers] - own.loss[answers]),
        "reliability": reliability(own.reliability),
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


def reliability(counted: np.ndarray) -> JSONObject:
    """How far stated probabilities are from what happens.

    Args:
      counted: `Scores.reliability`, float[B, 3].
    Returns:
      error: mean |σ(|margin|) − share right| over the bins, weighted by comparisons (expected calibration error); surer: mean
      σ(|margin|) − share right over all, above 0 for too sure a model; bins: [mean σ(|margin|), share right, comparisons].
    """
    sure, right, count = counted.T
    total, some = max(float(count.sum()), 1.0), count > 0
    bins = np.stack([sure[some] / count[some], right[some] / count[some], count[some]], axis=1)
    return {
        "error": float(np.abs(sure - right).sum() / total),
        "surer": float((sure - right).sum() / total),
        "bins": bins.tolist(),
    }


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


def _base(prefs: Preferences, protocols: Sequence[Protocol], aggregate: Scores, seed: int) -> JSONObject:
    """Accuracy and gain of scores that know no people."""
    parts: dict[str, list[np.ndarray]] = {}
    for protocol in protocols:
        tests = protocol.new[MAIN]
        for name, score in controls.base_rewards(prefs, protocol.division.training).items():
            values = person_accuracy(score[tests.chosen] - score[tests.rejected], tests)
            parts.setdefault(name, []).append(values)
    found = {}
    for name, folds in parts.items():
        values = np.concatenate(folds)
        gain = values - aggregate.accuracy[protocols[0].answers]
        found[name] = {"accuracy": interval_of(values, seed), "gain": interval_of(gain, seed)}
    return found
