"""report.html of `chorus rewards fit` and `chorus rewards evaluate`."""

from pathlib import Path

import numpy as np

from rewards.files import JSONObject
from rewards.types import Preferences
from rlhf.report import comparison, page, plots
from rlhf.report.verdict import rewards_verdict
from rlhf.run.directory import plain

_SCALARS = (
    "num_basis",
    "training_people",
    "held_out_people",
    "training_comparisons",
    "num_items",
    "training_accuracy",
)


def axis_items(prefs: Preferences, phi: np.ndarray, count: int = 3) -> list[dict[str, list[str]]]:
    """For each axis the texts with the largest and the smallest φ, for `result["axis_items"]`.

    Args:
      phi: float[I, K], features of every item, centred by prompt.
      count: texts at either end, all different.
    Returns:
      K entries {largest, smallest}; only items that occur in a comparison are considered.
    """
    used = np.union1d(prefs.chosen, prefs.rejected)
    result = []
    for axis in range(phi.shape[1]):
        ordered = used[np.argsort(phi[used, axis], kind="stable")]
        texts = list(dict.fromkeys(prefs.item_text[item] for item in ordered))
        result.append({"largest": texts[::-1][:count], "smallest": texts[:count]})
    return result


def write_rewards_report(directory: Path, result: JSONObject) -> None:
    """Write report.html; parts whose numbers are not in `result` are left out.

    Args:
      directory: run directory; environment.json and config.yaml there are shown as provenance.
      result: as in metrics.json. Optional: `evaluation` (with `person_accuracy` {n: [U]} and
        `pooled_person_accuracy` [U] for figures by person), `axis_items` (see the function of this name).
    Raises:
      UserError: the page cannot be written.
    """
    result = plain(result)
    evaluation = result.get("evaluation") or {}
    sections = [
        page.section(
            "How many answers does a new person need?", _curve(evaluation), _curve_table(evaluation)
        ),
        page.section("Person by person", _people(evaluation)),
        page.section("Is it really the person?", _swap(evaluation)),
        *comparison.sections(evaluation),
        page.section("Off-the-shelf rewards", _columns(result)),
        page.section("The axes of taste", _axes(result)),
        page.section("How K was chosen", _candidates(result)),
        page.section(
            "The fit",
            page.metric_table(
                {name: result[name] for name in _SCALARS if name in result}
                | {f"fit/{name}": value for name, value in (result.get("fit") or {}).items()}
            ),
        ),
    ]
    page.write_page(Path(directory), "Rewards and people's coefficients", rewards_verdict(result), sections)


def _without_chosen(evaluation: JSONObject) -> JSONObject:
    """A model whose belief is not Gaussian chooses no questions: its one curve is that of random ones."""
    if "accuracy_random" not in evaluation or evaluation.get("accuracy") != evaluation["accuracy_random"]:
        return evaluation
    return {name: value for name, value in evaluation.items() if name != "accuracy"}


def _curve(evaluation: JSONObject) -> str:
    evaluation = _without_chosen(evaluation)
    curves = {
        label: evaluation[name]
        for name, label in (("accuracy", "chosen questions"), ("accuracy_random", "random questions"))
        if evaluation.get(name)
    }
    if not curves:
        return ""
    levels = {}
    if evaluation.get("pooled_accuracy"):
        levels["one model for all"] = evaluation["pooled_accuracy"]
    if evaluation.get("swap"):
        levels[f"another's {evaluation['swap']['answers']} answers"] = evaluation["swap"]["swapped"]
    return page.figure(
        plots.accuracy_curve(curves, levels),
        "People who were never in the fit answer questions from their own recorded choices; then their "
        "last choices are "
        "predicted. Bands are 95 % intervals over people. With no answers a person is the population's "
        "mean. The lines "
        "to beat: one model for everybody, and somebody else's coefficients.",
    )


def _curve_table(evaluation: JSONObject) -> str:
    accuracy = evaluation.get("accuracy") or {}
    evaluation = _without_chosen(evaluation)
    columns = [
        (name, label)
        for name, label in (
            ("accuracy", "chosen questions"),
            ("accuracy_random", "random questions"),
            ("loss_nats", "loss (nats)"),
            ("fully_asked", "people asked n"),
        )
        if evaluation.get(name)
    ]
    if not columns:
        return ""
    rows = [[n, *(evaluation[name].get(n, "") for name, _ in columns)] for n in sorted(accuracy, key=int)]
    named = {name: evaluation[name] for name in ("pooled_accuracy",) if name in evaluation}
    return (
        page.table(
            ["answers", *(label for _, label in columns)], rows, numbers=tuple(range(1, len(columns) + 1))
        )
        + page.metric_table(named)
        + _explained([name for name, _ in columns])
    )


def _explained(names: list[str]) -> str:
    """What the columns above mean."""
    rows = [(name, page.METRICS[name].meaning, page.METRICS[name].wrong) for name in names]
    return page.details(
        "What the columns mean", page.table(["column", "meaning", "when something is wrong"], rows)
    )


def _people(evaluation: JSONObject) -> str:
    recorded = evaluation.get("person_accuracy") or {}
    if not recorded:
        return ""
    last = max(recorded, key=int)
    values = np.array(recorded[last], np.float64)
    marks = {"mean": float(values.mean()), "worst decile": float(np.quantile(values, 0.1))}
    if evaluation.get("pooled_accuracy"):
        marks["one model"] = evaluation["pooled_accuracy"]["mean"]
    return page.figure(
        plots.histogram(values, f"share of a person's choices predicted right after {last} answers", marks),
        "A good mean can hide people for whom it does not work: they stand on the left.",
    )


def _swap(evaluation: JSONObject) -> str:
    swap = evaluation.get("swap")
    if not swap:
        return ""
    return page.paragraph(
        f"Everybody is predicted once more with the coefficients of somebody else, both after "
        f"{swap['answers']} answers. "
        "If that works as well, the coefficients say nothing about the person.",
        "note",
    ) + page.metric_table({name: value for name, value in swap.items() if name != "answers"})


def _axes(result: JSONObject) -> str:
    names = result.get("axes") or []
    if not names:
        return ""
    items = result.get("axis_items")
    head = ["axis", "mean", "standard deviation"] + (
        ["texts with most of it", "texts with least of it"] if items else []
    )
    mean, spread = result.get("prior_mean"), result.get("prior_sd")
    meanings = result.get("axis_meanings") or {}
    head = head[:1] + ["goes with"] * bool(meanings) + head[1:]
    rows = []
    for axis, name in enumerate(names):
        row = [
            name,
            *([_meaning(meanings[name])] if meanings else []),
            mean[axis] if mean else "",
            spread[axis] if spread else "",
        ]
        if items:
            row += [_texts(items[axis]["largest"]), _texts(items[axis]["smallest"])]
        rows.append(row)
    note = (
        "Every axis is one of the rewards that were brought, standardised. The standard deviation says how much people "
        "differ along the axis, the mean where the average person stands."
        if result.get("model") == "columns"
        else "Axis 0 is the direction of what all people share; along the others they differ, most on the "
        "first. The standard "
        "deviation says how much people differ along the axis, the mean where the average person stands."
    )
    if meanings:
        note += (
            " An axis has no name of its own: beside it stand the traits of the surface and the words that answers high "
            "on it share, and how much of its variance they explain."
        )
    numbers = (2, 3) if meanings else (1, 2)
    return page.paragraph(note, "note") + page.table(head, rows, numbers=numbers)


def _meaning(found: JSONObject) -> str:
    return f"{found['words']} ({found['explained']:.0%})" if found["words"] else "nothing on the surface"


def _texts(texts: list[str], length: int = 160) -> str:
    return " · ".join(text if len(text) <= length else text[: length - 1] + "…" for text in texts)


def _columns(result: JSONObject) -> str:
    """Columns in use with what they measured about themselves, and those switched off, first, with the reason."""
    columns = result.get("columns") or {"used": {}, "off": {}}
    rows = [(name, "switched off", reason) for name, reason in columns["off"].items()]
    for name, own in columns["used"].items():
        state = "gate" if own.get("gate") is not None else "reward"
        measured = {key: value for key, value in own.items() if key != "kind"}
        said = ", ".join(
            f"{key} {value if isinstance(value, list) else page.number(value)}"
            for key, value in measured.items()
        )
        rows.append((name, f"{state} ({own['kind']})", said))
    return page.table(["column", "state", "measured"], rows)


def _candidates(result: JSONObject) -> str:
    candidates = result.get("candidates") or []
    rows = [
        (c["num_basis"], c["dims"], c["loss_nats"], c["loss_se"], "chosen" if c["chosen"] else "")
        for c in candidates
    ]
    note = (
        "Each setting was fitted without some of the training people, given half of their answers at most, "
        "and judged by "
        "its loss on the others: the smallest setting within one standard error of the best is taken. A "
        "coin has 0.693."
    )
    head = ["K", "embedding dimensions", "loss (nats)", "standard error", ""]
    return page.paragraph(note, "note") + page.table(head, rows, numbers=(0, 1, 2, 3)) if rows else ""
