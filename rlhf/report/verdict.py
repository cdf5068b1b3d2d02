"""The first line of a report: did personalisation help? It is allowed to say no."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from rewards.comparison.judging import NO_SIGNAL, SILENT
from rewards.comparison.measures import Interval, bootstrap
from rewards.comparison.power import RELEVANT, RELEVANT_NATS, Power, cannot_show, least_half_width, power
from rewards.files import JSONObject
from rlhf.report.figures import off_diagonal_mean
from rlhf.run.directory import plain

NEGLIGIBLE_NATS = 0.05
"""A mean reward difference that nobody would notice: 0.05 nats of log-odds turn at most 1.25 choices
in a hundred."""
FEW_PEOPLE = 5
TESTED = 3
"""Tested choices of a person where a result does not say: the default of data.last_choices."""
ENOUGH_MASS = 0.9


class Verdict(NamedTuple):
    """status: "won", "lost" or "unknown" (not measured, or not to be judged); text: a few sentences."""

    status: str
    text: str


def evaluation_verdict(result: JSONObject, matrix: np.ndarray) -> Verdict:
    """Judge a policy by the people by people matrix [U, U] and the aggregate policy's reward for each person.

    Where neither is shown, `rewards.comparison.power` decides between lost and unknown. Won needs both 95 % intervals over
    people above zero: own minus swapped, which must also exceed NEGLIGIBLE_NATS, and own minus aggregate, where that was
    measured (`enumerated.per_person`).
    """
    matrix = np.asarray(matrix, np.float64)
    num_people = len(matrix)
    if num_people < 2:
        return Verdict("unknown", f"Not to be judged: {num_people} person evaluated; compare at least two.")
    if not np.isfinite(matrix).all():
        return Verdict(
            "unknown", "Not to be judged: the matrix of rewards holds numbers that are not finite."
        )
    own = np.diag(matrix)
    swap = _interval(own - off_diagonal_mean(matrix))
    caution = _few(num_people)
    mass = result.get("enumerated", {}).get("valid_mass")
    if mass is not None and mass < ENOUGH_MASS:
        caution += (
            f" The figures are exact within the known answers, which hold only {mass:.0%} of the probability."
        )
    # Mean over people of how far the reward moves at all when other people's coefficients are put in.
    moved = float(np.mean(np.ptp(matrix, axis=1)))
    measured = f"own minus other people's policy: {_span(swap)} nats"
    if moved < NEGLIGIBLE_NATS or (swap.low > 0 and swap.mean < NEGLIGIBLE_NATS):
        reason = (
            "this policy ignores the user. Putting in other people's coefficients changes a person's reward "
        )
        return _lost(reason + "by next to nothing", measured, caution)
    if swap.high < 0:
        reason = "people are served better by other people's coefficients than by their own"
        return _lost(reason, measured, caution)
    if swap.low <= 0:
        reason = "answers change with the person, but it is not shown that they change in the person's favour"
        return _not_shown(reason, measured, _nats(swap, num_people), caution)
    aggregate = aggregate_rewards(result)
    if aggregate is None:
        return Verdict(
            "won",
            f"Personalisation helps against the wrong person's policy ({measured}); the aggregate policy was not "
            f"measured here.{caution}",
        )
    own = np.asarray(result["enumerated"]["per_person"]["own_reward"], np.float64)
    gain = _interval(own - aggregate)
    against = (
        f"own minus aggregate: {_span(gain)} nats; {np.mean(own > aggregate):.0%} of {num_people} people gain"
    )
    if gain.high < 0:
        return _lost("one policy for everybody serves people better than their own", against, caution)
    if gain.low <= 0:
        reason = "it is not shown that people's own policies beat one policy for everybody"
        return _not_shown(reason, against, _nats(gain, num_people), caution)
    return Verdict(
        "won",
        f"Personalisation helps here: people get more from their own policy than from one for everybody "
        f"({against}) and than from another person's ({measured}).{caution}",
    )


def rewards_verdict(result: JSONObject) -> Verdict:
    """Judge coefficients of people never seen by `result["evaluation"]`.

    Where the models were compared, their sentence is the verdict, after alarms: texts that give the choice away,
    a model that ignores the user, a failed control. Otherwise won needs the swap test's paired interval above zero
    and an accuracy whose interval lies above the pooled model's: paired by person where both are given, else
    interval against interval, which is stricter.
    """
    evaluation = plain(result.get("evaluation"))
    if evaluation and (evaluation.get("leak") or {}).get("alarm"):
        found = evaluation["leak"]["message"].removeprefix("ALARM: ")
        return Verdict("lost", f"Leak alarm, so no figure below may be believed: {found.rstrip('.')}.")
    if evaluation and evaluation.get("comparison"):
        return _comparison_verdict(evaluation["comparison"])
    if not evaluation or "accuracy" not in evaluation:
        silent = (result.get("fit") or {}).get("scale") == 0
        found = f"{NO_SIGNAL} ({result.get('model')}): {SILENT}. " if silent else ""
        return Verdict(
            "unknown",
            f"{found}Not judged yet: {_how_to_judge(result)}.{_at_best(result)}",
        )
    answers, accuracy = _judged(evaluation)
    if answers == "0":
        return Verdict(
            "unknown", "Not to be judged: nobody was asked anything (evaluation.counts holds only 0)."
        )
    caution = _few(evaluation.get("people"))
    said = f"{accuracy['mean']:.1%} of the last choices predicted after {answers} answers"
    swap = evaluation.get("swap")
    if swap and swap["difference"]["low"] <= 0:
        reason = "another person's coefficients predict as well as one's own"
        difference = Interval(**swap["difference"])
        figures = f"{said}; own minus swapped: {_share(swap['difference'])}"
        if difference.high < 0:
            return _lost(reason, figures, caution)
        return _not_shown(reason, figures, _points(difference, evaluation), caution)
    pooled = evaluation.get("pooled_accuracy")
    if pooled is None:
        return Verdict(
            "unknown", f"Not to be judged: {said}, but the pooled model was not measured.{caution}"
        )
    gain = paired_gain(evaluation, answers)
    above = gain.low > 0 if gain else accuracy["low"] > pooled["high"]
    against = f"one model for everybody: {pooled['mean']:.1%}"
    against += (
        f"; gain {_share(dataclasses.asdict(gain))}"
        if gain
        else f", 95 % {pooled['low']:.1%} to {pooled['high']:.1%}"
    )
    if not above:
        reason = "it is not shown that a few answers predict better than one model for everybody"
        difference = gain or _unpaired(accuracy, pooled)
        if difference.high < 0:
            return _lost(reason, f"{said}; {against}", caution)
        return _not_shown(reason, f"{said}; {against}", _points(difference, evaluation), caution)
    tail = "" if swap else " Other-user swap: not measured."
    return Verdict("won", f"Personalisation helps here: {said} ({against}).{tail}{caution}")


def _comparison_verdict(board: JSONObject) -> Verdict:
    """The comparison's sentence; a win that also happens where nobody differs is none."""
    own, caution = board["models"][board["judged"]], _few(board["people"])
    if own["ignores_user"] and board.get("status") != "unknown":  # the sentence says so
        return Verdict("lost", board["sentence"] + caution)
    controls = own.get("controls", {})
    identical, planted = controls.get("identical_people"), controls.get("planted_tastes")
    if identical and not identical["passed"] and "gain" in identical:
        return Verdict(
            "unknown",
            f"Not to be believed: where everybody's answers come from one and the same taste, {board['judged']} gains "
            f"as well ({_share(identical['gain'])}). {board['sentence']}{caution}",
        )
    if planted and not planted["passed"] and not board["helps"] and not board.get("planted"):
        caution = f" Nor were planted tastes found: so little data can hardly show any.{caution}"
    # Boards of before there was a power have no status.
    return Verdict(board.get("status") or ("won" if board["helps"] else "lost"), board["sentence"] + caution)


def _lost(reason: str, figures: str, caution: str) -> Verdict:
    return Verdict("lost", f"Personalisation lost here: {reason} ({figures}).{caution}")


def _not_shown(reason: str, figures: str, judged: tuple[Power, float, str], caution: str) -> Verdict:
    """Lost where a relevant difference would have been found, else unknown.

    Args:
      judged: what the people could have shown, what is relevant, and its unit.
    """
    found, relevant, unit = judged
    if found.shows(relevant):
        return _lost(reason, figures, caution)
    return Verdict("unknown", f"Unknown: {cannot_show(found, unit)}; {reason} ({figures}).{caution}")


def _points(difference: Interval, evaluation: JSONObject) -> tuple[Power, float, str]:
    choices = int(evaluation.get("tested_choices") or TESTED)
    people = int(evaluation.get("people") or 0)
    return power(difference.low, difference.high, people, choices=choices), RELEVANT, "points"


def _nats(difference: Interval, people: int) -> tuple[Power, float, str]:
    return power(difference.low, difference.high, people), RELEVANT_NATS, "nats"


def _unpaired(accuracy: JSONObject, pooled: JSONObject) -> Interval:
    """Difference of two means whose people are not matched: half-widths add as those of independent ones."""
    mean = accuracy["mean"] - pooled["mean"]
    half = float(np.hypot(*((one["high"] - one["low"]) / 2 for one in (accuracy, pooled))))
    return Interval(mean, mean - half, mean + half)


def _how_to_judge(result: JSONObject) -> str:
    run, judged = result.get("run_dir"), result.get("judged_on") or {}
    command = f"chorus rewards evaluate {run}/config.yaml" if run else "chorus rewards evaluate"
    if judged.get("folds", 1) > 1:
        return f"`{command}` holds each of {judged['people']} people out once and predicts their choices"
    return f"`{command}` replays the people who were held out"


def _at_best(result: JSONObject) -> str:
    """What so many people could show by the noise of their choices alone (`least_half_width`)."""
    judged = result.get("judged_on") or {}
    people = int(judged.get("people") or result.get("held_out_people") or 0)
    if not people:
        return ""
    choices = int(judged.get("choices") or result.get("last_choices") or TESTED)
    half = least_half_width(people, choices)
    found = power(-half, half, people, choices=choices)
    in_folds = judged.get("folds", 1) > 1
    if found.shows(RELEVANT) and not in_folds:
        return ""
    more = "more people can" if in_folds else "more people, or a larger data.held_out_people, can"
    said = f"with {choices} choices of each to predict, {cannot_show(found)}"
    return f" At best, {said}; {more}."


def _few(people: int | None) -> str:
    return f" Only {people} people: the intervals say little." if people and people < FEW_PEOPLE else ""


def paired_gain(evaluation: JSONObject, answers: str) -> Interval | None:
    """Accuracy after `answers` minus the pooled model's, person by person; None where not both are recorded."""
    personal = evaluation.get("person_accuracy", {}).get(answers)
    pooled = evaluation.get("pooled_person_accuracy")
    if personal is None or pooled is None:
        return None
    return _interval(np.asarray(personal) - np.asarray(pooled))


def aggregate_rewards(result: JSONObject) -> np.ndarray | None:
    """The aggregate policy's reward for each person, [U]; None where it was not measured."""
    per_person = result.get("enumerated", {}).get("per_person", {})
    values = per_person.get("aggregate_reward")
    return None if values is None or "own_reward" not in per_person else np.asarray(values, np.float64)


def _judged(evaluation: JSONObject) -> tuple[str, dict[str, float]]:
    """The number of answers by which the verdict is given: that of the swap, else the largest up to ten."""
    counts = sorted(map(int, evaluation["accuracy"]))
    wanted = (evaluation.get("swap") or {}).get(
        "answers", max((n for n in counts if n <= 10), default=counts[0])
    )
    return str(wanted), evaluation["accuracy"][str(wanted)]


def _interval(values: np.ndarray) -> Interval:
    return bootstrap(values, jax.random.key(0))


def _span(interval: Interval) -> str:
    mean, low, high = (
        f"{round(value, 2) + 0.0:+.2f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean}, 95 % {low} to {high}"


def _share(interval: dict[str, float]) -> str:
    return f"{interval['mean']:+.1%}, 95 % {interval['low']:+.1%} to {interval['high']:+.1%}"
