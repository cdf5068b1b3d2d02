"""report.html of `chorus evaluate`."""

from pathlib import Path

import numpy as np

from rewards.files import JSONObject
from rewards.types import Prompt
from rlhf.report import page, plots
from rlhf.report.figures import off_diagonal_mean
from rlhf.report.verdict import aggregate_rewards, evaluation_verdict
from rlhf.run.directory import plain

_SHOWN_PEOPLE = 8
_SECTIONS = {
    "enumerated": ("Exact figures", "Expectations over all known answers, not samples; mean over prompts."),
    "sampled": ("Sampled answers", "What the policy says when it may say anything."),
}


def write_evaluation_report(
    directory: Path,
    result: JSONObject,
    matrix: np.ndarray,
    people: list[str],
    examples: list[JSONObject],
) -> None:
    """Write report.html; parts whose numbers are not in `result` are left out.

    Args:
      directory: run directory; environment.json and config.yaml there are shown as provenance.
      result: as in metrics.json, with `enumerated` and `sampled` of `rlhf.report.figures`.
      matrix: float[U, U] in nats; row u, column v: what u gets, by u's own taste, from the policy made for v.
      people: U ids, in the order of `matrix`.
      examples: {person, answer, coefficients?, prompt?} each; coefficients also order the heat map.
    Raises:
      UserError: the page cannot be written.
    """
    result, matrix = plain(result), np.asarray(matrix, np.float64)
    if matrix.shape != (len(people), len(people)):
        raise ValueError(f"matrix has shape {matrix.shape} for {len(people)} people")
    verdict = evaluation_verdict(result, matrix)
    axis = _taste_axis(people, examples)
    sections = [
        page.section(
            "Does each person get answers that suit them?",
            _matrix_figure(matrix, people, axis),
            _dots(result, matrix),
        ),
        page.section("How near is it to the best possible policy?", _distance_figure(result)),
        page.section("The same question, asked by different people", _examples(examples, axis)),
        *(_figures(result, name) for name in _SECTIONS),
        page.section("Setting", page.metric_table(_scalars(result))),
    ]
    page.write_page(Path(directory), "Evaluation of a personalised policy", verdict, sections)


def _taste_axis(people: list[str], examples: list[JSONObject]) -> dict[str, float]:
    """Each person's coefficient on the first taste axis (axis 0 is what all share); empty unless all are
    known.
    """
    coef = {str(example.get("person")): example.get("coefficients") for example in examples}
    known = {person: own for person, own in coef.items() if own is not None}
    if not set(people) <= set(known):
        return {}
    return {person: float(own[min(1, len(own) - 1)]) for person, own in known.items()}


def _matrix_figure(matrix: np.ndarray, people: list[str], axis: dict[str, float]) -> str:
    if len(matrix) < 2 or not np.isfinite(matrix).all():
        return ""
    order = sorted(range(len(people)), key=lambda u: axis[people[u]]) if axis else list(range(len(people)))
    ordered_by = "by the first taste axis" if axis else "in the order of the data"
    drawn = plots.heat_map(matrix[np.ix_(order, order)], [people[u] for u in order], ordered_by)
    return page.figure(
        drawn,
        "Each row is one person's taste, each column the policy made for one person. Blue: this person "
        "would get less "
        "from that policy than from the own one, as it should be. Red: that policy would serve the person "
        "better. A "
        "column that looks the same in all rows is a policy that is simply better or worse; no colour at "
        "all is a "
        "policy that ignores the user.",
    )


def _dots(result: JSONObject, matrix: np.ndarray) -> str:
    if len(matrix) < 2 or not np.isfinite(matrix).all():
        return ""
    series = {"own": np.diag(matrix)}
    aggregate = aggregate_rewards(result)
    if aggregate is not None:
        series["aggregate"] = aggregate
    series["swapped"] = off_diagonal_mean(matrix)
    return page.figure(
        plots.person_dots(series),
        "One line a person: reward expected from the own policy, from the aggregate policy that serves "
        "everybody alike, "
        "and from other people's (mean). Personalisation works where the own dot is the rightmost.",
    )


def _distance_figure(result: JSONObject) -> str:
    exact = result.get("enumerated", {})
    values = exact.get("per_person", {}).get("kl_to_optimum")
    if not values or not all(value is not None for value in values):
        return ""
    marks = {"mean": float(np.mean(values))}
    if exact.get("kl_of_reference_to_optimum") is not None:
        marks["before training"] = exact["kl_of_reference_to_optimum"]
    return page.figure(
        plots.histogram(np.array(values), "KL to the person's best policy (nats)", marks),
        "The best policy for a person is the starting model tilted by that person's reward. 0 is perfect; "
        "where people "
        "stand at the mark “before training”, nothing was gained.",
    )


def _examples(examples: list[JSONObject], axis: dict[str, float]) -> str:
    """Answers side by side; of many people those at the two ends of the first taste axis."""
    shown = sorted(examples, key=lambda example: axis[str(example["person"])]) if axis else list(examples)
    note = ""
    if len(shown) > _SHOWN_PEOPLE:
        half = _SHOWN_PEOPLE // 2
        shown = shown[:half] + shown[-half:]
        note = page.paragraph(
            f"{_SHOWN_PEOPLE} of {len(examples)} people: "
            + ("both ends of the first taste axis." if axis else "first and last."),
            "note",
        )
    return note + page.cards(_example(example) for example in shown) if shown else ""


def _example(example: JSONObject) -> str:
    prompt = _prompt_text(example["prompt"]) if example.get("prompt") else ""
    coef = example.get("coefficients")
    weights = "coefficients " + ", ".join(f"{value:+.2f}" for value in coef) if coef is not None else ""
    parts = [
        page.heading(str(example["person"])),
        page.paragraph(prompt, "note text") if prompt else "",
        page.paragraph(example["answer"] or "(empty answer)", "text"),
        page.paragraph(weights, "note") if weights else "",
    ]
    return page.joined(parts)


def _prompt_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{role}: {content}" for role, content in prompt)


def _figures(result: JSONObject, name: str) -> str:
    title, note = _SECTIONS[name]
    values = _scalars(result.get(name, {}))
    return page.section(title, page.paragraph(note, "note"), page.metric_table(values)) if values else ""


def _scalars(values: JSONObject) -> JSONObject:
    """The single figures among nested results (null is a figure that was not finite)."""
    return {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, (int, float)) or page.is_interval(value)
    }
