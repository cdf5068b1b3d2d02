"""report.html of `chorus evaluate` with policies: what was written, for whom, how good it is, and the texts themselves."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rewards.files import JSONObject
from rlhf.report import outputs_browser, outputs_runs, page, plots
from rlhf.report.verdict import Verdict
from rlhf.run.metric_docs import EVALUATION

MOST_PAIRS = 400
"""Of policies and judges in a table."""
MOST_PEOPLE = 60
"""In a heat map and in bars: more cannot be read."""
OWN = outputs_browser.OWN


def write_outputs_report(
    directory: Path,
    result: JSONObject,
    matrices: dict[str, list[list[float]]],
    people: Sequence[str],
    rows: Sequence[JSONObject],
) -> None:
    """Write report.html.

    Args:
      result: as in metrics.json. matrices: by policy [U, U], row u what u gets of what was written for column v.
      people: U names. rows: as in samples.jsonl.
    """
    data, told = outputs_browser.browser(result, people, rows)
    first = next(iter(result["policies"]))
    sections = [
        page.section(
            "Comparisons",
            _comparisons(result, lambda names: first in names),
            page.details("The other pairs", _comparisons(result, lambda names: first not in names)),
            page.paragraph(_COMPARISON, "note") if result["comparisons"] else page.Markup(""),
        ),
        page.section("Does each person get answers that suit them?", *_heat_maps(matrices, people)),
        page.section("Person by person", *_bars(result)),
        page.section("Taste against distance", *_front(result)),
        page.section(
            "What they wrote",
            page.paragraph(f"{told} Keys: j and k go to the next and the previous, / filters.", "note"),
            page.Markup('<div id="outputs"></div>'),
        ),
        page.section("Policies", _policies(result), _quality(result)),
        page.section("Exact figures", *_exact(result)),
        page.section("Rails", *outputs_runs.rails(result)),
        page.section("Judges", _judges(result)),
        page.section("How they were trained", *outputs_runs.curves(result)),
        page.section("What the figures mean", page.metric_table_of("outputs", EXPLAINED)),
        page.section("Setting", page.table(["", ""], _setting(result, directory))),
    ]
    script = page.Script.of("outputs.js", "outputs-data", data)
    verdict = Verdict(**result["verdict"])
    page.write_page(directory, "What policies write", verdict, sections, script)


_COMPARISON = (
    "Win rate: share of pairs of completions in which the first policy's is better, a tie one half, with its 95 % interval over "
    "people and prompts. Judged: the judge says something of both in so many only; the rest counts as ties. At equal length: the "
    "same if both were equally long; never seen where one is the longer throughout. Two points need: prompts with which a true "
    "difference of two points would be found in four cases of five."
)


def _comparisons(result: JSONObject, shown: Callable[[list[str]], bool]) -> str:
    chosen = [one for one in result["comparisons"] if shown(one["policies"])]
    rows = [
        (
            " against ".join(one["policies"]),
            one["judge"] if one.get("judged", 1) == 1 else f"{one['judge']} (judged: {one['judged']:.0%})",
            _span(one["win_rate"], "%"),
            "never seen" if one["length_controlled"] is None else f"{one['length_controlled']:.1%}",
            _span(one["difference"]),
            f"{one['people_who_gain']:.0%}",
            f"{one['worst_tenth']:.1%}",
            "more people" if one["prompts_needed"] is None else f"{one['prompts_needed']:,}",
            one["outcome"],
        )
        for one in chosen[:MOST_PAIRS]
    ]
    head = ["policies", "judge", "win rate", "at equal length", "difference", "people who gain"]
    head += ["worst tenth of people", "two points need", "the first is"]
    rest = len(chosen) - len(rows)
    note = [page.paragraph(f"{rest:,} more are in metrics.json.", "note")] if rest else []
    return page.joined([page.table(head, rows), *note])


def _policies(result: JSONObject) -> str:
    rows = []
    for name, one in result["policies"].items():
        for judge, worth in one["worth"].items():
            own = one.get("own_minus_other") if judge == OWN else None
            groups = ", ".join(f"{group} {value:.3g}" for group, value in worth["by_group"].items())
            rows.append(
                (
                    name,
                    judge,
                    _span(worth["mean"]),
                    f"{worth['worst_tenth']:.3g}",
                    groups,
                    _span(own) if own else "–",
                )
            )
    head = ["policy", "judge", "mean", "worst tenth of people", "by group", "own minus other people's"]
    return page.table(head, rows)


def _quality(result: JSONObject) -> str:
    """Two tables, one would be wider than the page: of the texts by themselves, and of how far they are from others."""
    return page.joined(_figures_table(result, names) for names in (TEXTS, DISTANCES))


TEXTS = (
    "distinct_1",
    "distinct_2",
    "repetition",
    "truncated",
    "empty",
    "other_language",
    "tokens",
    "characters",
)
DISTANCES = ("perplexity", "kl_to_reference", "kl_to_aggregate", "likeness_within", "likeness_between")


def _figures_table(result: JSONObject, names: Sequence[str]) -> str:
    rows = []
    for policy, one in result["policies"].items():
        likeness = {f"likeness_{name}": value for name, value in one["likeness"].items()}
        values = one["quality"] | likeness
        rows.append((policy, *(_figure(values[name]) for name in names)))
    return page.table(["policy", *names], rows)


def _exact(result: JSONObject) -> list[str]:
    """Figures over listed answers, a column a policy."""
    found = {name: one["exact"] for name, one in result["policies"].items() if "exact" in one}
    if not found:
        return []
    names = [name for name, value in next(iter(found.values())).items() if not isinstance(value, dict)]
    rows = [
        (
            name,
            *(page.number(one[name]) for one in found.values()),
            EVALUATION[name].unit,
            EVALUATION[name].meaning,
        )
        for name in names
    ]
    told = "Expectations over all answers that the data lists, not samples; mean over prompts."
    return [page.paragraph(told, "note"), page.table(["figure", *found, "unit", "meaning"], rows)]


EXPLAINED = (
    *(*TEXTS, *DISTANCES),
    *("win_rate", "length_controlled", "difference", "people_who_gain", "worst_tenth", "own_minus_other"),
    *("prefer_own", "detectable", "prompts_needed"),
)


def _judges(result: JSONObject) -> str:
    """What was checked of each judge but people's own rewards."""
    rows = [
        (
            name,
            one["kind"],
            "–" if one["longer_preferred"] is None else f"{one['longer_preferred']:.1%} of {one['pairs']}",
            "–" if one.get("consistency") is None else f"{one['consistency']:.1%}",
            _own_model(one.get("self")),
            f"not counted: {one['off']}" if one["off"] else "counted",
        )
        for name, one in result["judge_checks"].items()
    ]
    head = [
        "judge",
        "kind",
        "prefers the longer",
        "same verdict in both orders",
        "prefers its own model's texts",
        "",
    ]
    return page.table(head, rows)


def _own_model(found: JSONObject | None) -> str:
    if found is None or found["preferred"] is None:
        return "–"
    others = "" if found["others"] is None else f"; the other judges in {found['others']:.1%}"
    said = f"in {found['preferred']:.1%} of comparisons of {', '.join(found['policies'])}{others}"
    return f"{said}: does not compare them with other policies" if found["partial"] else said


def _heat_maps(matrices: dict[str, list[list[float]]], people: Sequence[str]) -> list[str]:
    names, found = list(people[:MOST_PEOPLE]), []
    for policy, matrix in matrices.items():
        part = np.asarray(matrix, np.float64)[: len(names), : len(names)]
        drawn = plots.heat_map(part, names, "the order of the table")
        found.append(
            page.figure(
                drawn, f"{policy}: row by row, what a person loses by getting what was written for another"
            )
        )
    if matrices and len(people) > MOST_PEOPLE:
        found.append(
            page.paragraph(f"The first {MOST_PEOPLE} of {len(people)} people; matrix.json has all.", "note")
        )
    return found


def _bars(result: JSONObject) -> list[str]:
    """Win rate of the first comparison by people's own rewards, person by person, worst first."""
    if not result["comparisons"]:
        return []
    one = next((c for c in result["comparisons"] if c["judge"] == OWN), result["comparisons"][0])
    persons = [person["name"] for person in result["persons"]]
    if len(persons) < 2:
        return []
    order = np.argsort(one["per_person"], kind="stable")[:MOST_PEOPLE]
    shown = [(persons[i], one["per_person"][i]) for i in order]
    a, b = one["policies"]
    title = (
        f"Share of comparisons that {a} wins against {b}, by {one['judge']}, for each person, lowest first"
    )
    if len(persons) > len(shown):
        title += f" (the lowest {len(shown)} of {len(persons)})"
    return [page.paragraph(title), page.bars(shown)]


def _setting(result: JSONObject, directory: Path) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        (name, page.number(result[name]) if result[name] is not None else "none")
        for name in ("people", "prompts", "samples", "completions", "temperature", "reference")
    ]
    rows += [(f"policy {name}", _source(one)) for name, one in result["policies"].items()]
    again = f"chorus evaluate {shlex.quote(str(directory / 'config.yaml'))} output_dir=NEW"
    rows.append(("the same again", again))
    return [*rows, ("files", "samples.jsonl, samples.parquet, samples.csv, matrix.json, metrics.json")]


def _source(one: JSONObject) -> str:
    parts = [f"after step {one['step']}"] if "step" in one else []
    parts += ["the person's answers in the prompt"] if one.get("in_context") else []
    parts += [f"best of {one['best_of']} by the person's own reward"] if "best_of" in one else []
    return f"{', '.join([one['source'], *parts])} (sha256 {one['sha256'][:12]}…)"


def _front(result: JSONObject) -> list[str]:
    """Worth against KL to the reference, policy by policy."""
    if not result["judges"]:
        return []
    judge = OWN if OWN in result["judges"] else result["judges"][0]
    points: dict[str, tuple[float, float]] = {}
    for name, one in result["policies"].items():
        if one["quality"]["kl_to_reference"] is not None:
            points[name] = one["quality"]["kl_to_reference"], one["worth"][judge]["mean"]["mean"]
    if len(points) < 2:
        return []
    best = plots.pareto(points)
    drawn = plots.front(points, "KL to the reference (nats a completion)", f"mean {judge}")
    rows = [
        (number, name, page.number(kl), page.number(worth), "on the front" if name in best else "")
        for number, (name, (kl, worth)) in enumerate(points.items(), 1)
    ]
    told = "Each policy's worth, and how far from the reference it went for it. No other beats those on the front in both."
    return [page.paragraph(told), page.figure(drawn), page.table(["", "policy", "KL", judge, ""], rows)]


def _figure(value: object) -> str:
    return "–" if value is None else page.number(value)


def _span(found: JSONObject, unit: str = "") -> str:
    scale = 100 if unit else 1
    mean, low, high = (None if found[key] is None else found[key] * scale for key in ("mean", "low", "high"))
    if low is None or high is None:
        return f"{mean:.3g}{unit}"
    return f"{mean:.3g}{unit} ({low:.3g} to {high:.3g})"
