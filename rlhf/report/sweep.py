"""report.html of `chorus sweep`: the winner first, then trials, importance, parallel coordinates and the Pareto front."""

import itertools
import json
import statistics
from pathlib import Path

import numpy as np

from rewards.files import JSONObject
from rlhf.report import page, seeds, sweep_plots
from rlhf.report.verdict import Verdict

_FEW = 3


def write_sweep_report(
    directory: Path, result: JSONObject, rows: list[JSONObject], space: dict[str, str]
) -> None:
    """Write report.html.

    Args:
      result: metrics.json of the sweep. rows: its trials. space: key → kind of its range.
    """
    done = [row for row in rows if row["state"] == "complete"]
    objectives: dict[str, str] = result["objectives"]
    head, cells = sweep_table(result, rows)
    numbers = tuple(range(2, 2 + len(objectives)))
    first = next(iter(objectives.items()))
    over = seeds.section(seeds.over_seeds(rows, *first), first[0])
    sections = [_best_section(result), over, _front_section(result, done)]
    if len(done) >= 2:
        name, direction = next(iter(objectives.items()))
        history = sweep_plots.history(_points(rows, name), direction, name)
        sections.append(page.section("Trial by trial", page.figure(history, "Best so far as a line.")))
        sections.append(_coordinates_section(done, space, name, direction))
    if result["importance"]:
        note = (
            f"Share of the differences in {next(iter(objectives))} between trials that each key explains by itself "
            "(fANOVA); few trials make it rough."
        )
        drawn = page.figure(sweep_plots.bars(result["importance"]), note)
        sections.append(page.section("What mattered", drawn))
    sections.append(page.section("All trials", page.table(head, cells, numbers)))
    sections.append(_failures_section(rows))
    page.write_page(directory, "Sweep", sweep_verdict(result, rows), sections)


def sweep_verdict(result: JSONObject, rows: list[JSONObject]) -> Verdict:
    """Which configuration is best and by how much; the winner of many noisy trials looks better than it is."""
    counts = ", ".join(f"{count} {state}" for state, count in result["trials"].items() if count)
    best = result["best"]
    if best is None:
        done = result["trials"]["complete"]
        why = f"none of {done} complete trials meets the constraints" if done else "no trial was completed"
        return Verdict("lost", f"No best configuration: {why} ({counts or 'no trials'}).")
    found = ", ".join(f"{name} {page.number(value)}" for name, value in best["values"].items())
    params = ", ".join(f"{key} {_value(value)}" for key, value in best["params"].items())
    text = f"Trial {best['trial']} is best: {found} with {params} ({counts})."
    if len(best["values"]) > 1:
        text = (
            f"Trial {best['trial']} is the middle of {len(result['front'])} trials that no other beats: {found} with "
            f"{params} ({counts})."
        )
    [name, *_] = best["values"]
    text += seeds.sentence(seeds.over_seeds(rows, name, result["objectives"][name]), name)
    others = [row["values"][name] for row in rows if row["state"] == "complete"]
    if len(others) < _FEW:
        return Verdict("unknown", f"{text} Too few trials to say more.")
    return Verdict(
        "won", f"{text} The median trial has {name} {page.number(float(statistics.median(others)))}."
    )


def sweep_table(result: JSONObject, rows: list[JSONObject]) -> tuple[list[str], list[list[object]]]:
    """Head and rows of all trials, the best first: by the first objective, then those that are not complete."""
    objectives: dict[str, str] = result["objectives"]
    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))
    [(first, direction), *_] = objectives.items()
    sign = 1 if direction == "minimize" else -1

    def rank(row: JSONObject) -> tuple[bool, bool, float, int]:
        value = row["values"].get(first)
        return row["state"] != "complete", row["feasible"] is False, sign * (value or 0.0), row["trial"]

    cells = [
        [
            row["trial"],
            "breaks a constraint" if row["feasible"] is False else row["state"],
            *(row["values"].get(name, "") for name in objectives),
            *(_value(row["params"].get(key, "")) for key in keys),
            row["steps"],
        ]
        for row in sorted(rows, key=rank)
    ]
    return ["trial", "state", *objectives, *keys, "steps"], cells


def _best_section(result: JSONObject) -> str:
    best = result["best"]
    if best is None:
        return ""
    rows = [(key, _value(value)) for key, value in best["params"].items()]
    note = (
        "The best of many trials owes some of its number to luck: run it again with other seeds (seed=1 "
        "output_dir=…) before you believe the difference."
    )
    return page.section(
        "Best configuration",
        page.table(["key", "value"], rows),
        page.paragraph(f"{best['config']} runs as it is: {best['command']}"),
        page.paragraph(note, "note"),
    )


def _front_section(result: JSONObject, done: list[JSONObject]) -> str:
    names = list(result["objectives"])
    drawn = [
        page.figure(
            sweep_plots.front(
                np.array([[row["values"][one], row["values"][other]] for row in done]),
                [row["trial"] in result["front"] for row in done],
                [str(row["trial"]) for row in done],
                (one, other),
            ),
            "Marked: trials that no other beats in all objectives, by number.",
        )
        for one, other in itertools.combinations(names, 2)
        if len(done) >= 2
    ]
    return page.section("Pareto front", *drawn)


def _coordinates_section(done: list[JSONObject], space: dict[str, str], name: str, direction: str) -> str:
    axes = {
        key: ([row["params"][key] for row in done], kind)
        for key, kind in space.items()
        if all(key in row["params"] for row in done)
    }
    values = np.array([row["values"][name] for row in done])
    drawn = sweep_plots.parallel_coordinates(axes, values, name, direction)
    return page.section(
        "Parallel coordinates",
        page.figure(drawn, "A line a trial; the best tenth, at least one, is drawn strong."),
    )


def _failures_section(rows: list[JSONObject]) -> str:
    failed = [(row["trial"], row["problem"]) for row in rows if row["state"] == "failed"]
    return page.section("Failed trials", page.table(["trial", "what it said"], failed))


def _points(rows: list[JSONObject], name: str) -> list[tuple[int, float]]:
    return [(row["trial"], row["values"][name]) for row in rows if row["state"] == "complete"]


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
