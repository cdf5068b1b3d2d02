"""`chorus compare`: runs of any kind side by side; what differs in their settings, their figures, and pairs where there are any.

compare.json, compare.md, report.html   what was found, for programs and for people

Two evaluations of outputs are paired by person and prompt where both were judged alike, two evaluations of one policy by person.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rewards import hashed, jsonl, opening
from rewards.errors import UserError
from rewards.files import JSONObject, write_json, write_text
from rlhf.evaluation.outputs import statistics
from rlhf.run.config.document import parse
from rlhf.run.directory import CONFIG, INPUTS, RESULT, read_result
from rlhf.run.folder import check_own
from rlhf.run.metrics import read_metrics

MARKDOWN, RECORD = "compare.md", "compare.json"
LONGEST = 60
SAMPLES = "samples.jsonl"
_NOT_FIGURES = ("run_dir", "persons", "comparisons", "verdict", "judge_checks", "people")


class _Read(NamedTuple):
    """One run: kind as in its configuration, settings and figures by dotted name."""

    name: str
    directory: Path
    kind: str
    settings: dict[str, object]
    figures: dict[str, object]
    result: JSONObject


def compare(runs: Sequence[str], output: str | None = None) -> JSONObject:
    """Lay runs side by side.

    Args:
      runs: directories, at least two. output: folder for compare.json, compare.md and report.html; None writes nothing.
    Raises:
      UserError: fewer than two, the same twice, or a directory that is no run.
    """
    places = [Path(run) for run in runs]
    if len(places) < 2:
        raise UserError("compare: give at least two runs")
    if len({place.resolve() for place in places}) < len(places):
        raise UserError("compare: the same run twice; give different ones")
    names = _names(places)
    found = [_read(name, place) for name, place in zip(names, places, strict=True)]
    result: JSONObject = {
        "runs": [{"name": one.name, "path": str(one.directory), "kind": one.kind} for one in found],
        "settings": _table(found, "settings", differing=True),
        "figures": _table(found, "figures", differing=False),
        "verdicts": {one.name: one.result.get("verdict", {}).get("text") for one in found},
        "pairs": [pair for a, b in itertools.combinations(found, 2) for pair in _paired(a, b)],
    }
    if output is not None:
        from rlhf.report.compare import write_compare_report

        folder = check_own(output, RECORD, "comparison")
        write_json(folder / RECORD, result)
        write_text(folder / MARKDOWN, markdown(result))
        write_compare_report(folder, result)
    return result


def markdown(result: JSONObject) -> str:
    """The comparison as a page of Markdown."""
    names = [one["name"] for one in result["runs"]]
    lines = ["# " + " · ".join(map(_cell, names)), ""]
    for pair in result["pairs"]:
        lines += [f"- {_cell(sentence(pair))}"]
    for title, table in (("Figures", result["figures"]), ("Settings that differ", result["settings"])):
        if table:
            lines += [
                "",
                f"## {title}",
                "",
                "| | " + " | ".join(map(_cell, names)) + " |",
                "|---" * (len(names) + 1) + "|",
            ]
            lines += [
                f"| {_cell(key)} | " + " | ".join(_cell(shown(values[name])) for name in names) + " |"
                for key, values in table.items()
            ]
    return "\n".join(lines) + "\n"


def sentence(pair: JSONObject) -> str:
    """One pair in words."""
    a, b = pair["runs"]
    gain = pair["difference"]
    said = f"{a} minus {b}, {pair['what']}: {gain['mean']:+.3g} ({gain['low']:+.3g} to {gain['high']:+.3g}) over {pair['over']}"
    return said + ("" if gain["low"] > 0 or gain["high"] < 0 else "; no difference shown")


def shown(value: object) -> str:
    """A value of a table, in short."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _cell(text: str) -> str:
    for letter in "\\`*_{}[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def _names(places: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell them apart."""
    parts = [place.resolve().parts for place in places]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("paths differ")


def _read(name: str, place: Path) -> _Read:
    path = place / CONFIG
    if not path.is_file():
        raise UserError(f"{place}: no run (no {CONFIG}); give the output_dir of a chorus command")
    text = opening.text(path)
    settings, _ = parse(text, CONFIG)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: damaged; restore it")
    kind = text.split("\n", 1)[0].removeprefix("# chorus ").strip()
    result = read_result(place) if (place / RESULT).is_file() else {}
    rows = read_metrics(place)
    last = {key: value for row in rows for key, value in row.items() if key != "step"}
    figures = last | {k: v for k, v in _flat(result).items() if k.split(".")[0] not in _NOT_FIGURES}
    own = {key: value for key, value in _flat(settings).items() if key != "output_dir"}
    return _Read(name, place, kind, own, {k: v for k, v in figures.items() if _is_figure(v)}, result)


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested sections by dotted name; an interval is its mean."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and set(value) == {"mean", "low", "high"}:
            found[f"{prefix}{key}"] = value["mean"]
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _table(found: Sequence[_Read], field: str, *, differing: bool) -> dict[str, dict[str, object]]:
    """By key, each run's value; `differing`: only keys whose values are not all the same."""
    keys = dict.fromkeys(key for one in found for key in getattr(one, field))
    rows = {key: {one.name: getattr(one, field).get(key) for one in found} for key in keys}
    return {
        key: values
        for key, values in rows.items()
        if not differing or any(value != values[found[0].name] for value in values.values())
    }


def _paired(a: _Read, b: _Read) -> list[JSONObject]:
    if a.kind == b.kind == "outputs":
        return _paired_outputs(a, b)
    if a.kind == b.kind == "evaluate":
        return _paired_people(a, b)
    return []


def _paired_outputs(a: _Read, b: _Read) -> list[JSONObject]:
    """The first policies of both, over the people and prompts that both have, by each judge that both have."""
    if _rewards(a) != _rewards(b) or not all((one.directory / SAMPLES).is_file() for one in (a, b)):
        return []
    left, right = _worth(a), _worth(b)
    pairs = []
    for judge in [judge for judge in left if judge in right]:
        cells = sorted(left[judge].keys() & right[judge].keys())
        people = sorted({person for person, _ in cells})
        prompts = sorted({prompt for _, prompt in cells})
        full = [prompt for prompt in prompts if all((person, prompt) in cells for person in people)]
        if not people or not full or len(people) * len(full) < 2:
            continue
        gain = [[left[judge][u, p] - right[judge][u, p] for p in full] for u in people]
        over = f"{_counted(len(people), 'person', 'people')} and {_counted(len(full), 'prompt', 'prompts')}"
        pairs.append(_pair(a, b, f"worth of the first policy by {judge}", np.array(gain), over))
    return pairs


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _worth(run: _Read) -> dict[str, dict[tuple[str, str], float]]:
    """By judge, mean worth of the first policy's samples for each person and prompt.

    Raises:
      UserError: the run's samples or figures are damaged.
    """
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    try:
        first = next(iter(run.result["policies"]))
        for line in jsonl.raw_lines(run.directory / SAMPLES):
            row = jsonl.parse(line)
            if row["policy"] == first:
                place = (row["person"], jsonl.line(row["prompt"]))
                for judge, value in row["worth"].items():
                    own = found.setdefault(judge, {}).setdefault(place, [])
                    own.append(np.nan if value is None else float(value))
    except (jsonl.LineError, KeyError, TypeError, ValueError, AttributeError, StopIteration):
        raise UserError(
            f"{run.directory / SAMPLES}: damaged, or not of this {RESULT}; run chorus evaluate again in another output_dir"
        ) from None
    means = {judge: {place: float(np.mean(v)) for place, v in own.items()} for judge, own in found.items()}
    return {judge: {p: v for p, v in own.items() if np.isfinite(v)} for judge, own in means.items()}


def _rewards(run: _Read) -> object:
    path = run.directory / INPUTS
    if not path.is_file():
        return None
    found = hashed.read_record(path).get("inputs")
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; restore it")
    return found.get("rewards")


def _paired_people(a: _Read, b: _Read) -> list[JSONObject]:
    """Each person's own reward in both, where both list it."""
    values = []
    for one in (a, b):
        own = one.result.get("enumerated", {}).get("per_person", {}).get("own_reward")
        if own is None or one.settings.get("rewards") != a.settings.get("rewards"):
            return []
        values.append(dict(zip(one.result["people"], own, strict=True)))
    shared = [person for person in values[0] if person in values[1]]
    if len(shared) < 2:
        return []
    gain = np.array([[values[0][person] - values[1][person]] for person in shared])
    return [_pair(a, b, "each person's own reward, exactly", gain, f"{len(shared)} people")]


def _pair(a: _Read, b: _Read, what: str, gain: np.ndarray, over: str) -> JSONObject:
    return {
        "runs": [a.name, b.name],
        "what": what,
        "over": over,
        "difference": statistics.interval(gain)._asdict(),
        "detectable": statistics.detectable(gain),
    }
