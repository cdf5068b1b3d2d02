"""report.html of `chorus probe`: every figure for every bucket of people, alarms first."""

from pathlib import Path

from rewards.files import JSONObject
from rlhf.report import page
from rlhf.report.verdict import Verdict
from rlhf.run.metric_docs import PROBES


def write_probes_report(directory: Path, result: JSONObject) -> None:
    """Write `directory`/report.html."""
    head, rows = table(result)
    skipped = [[one["probe"], one["reason"]] for one in result["skipped"]]
    kinds = dict.fromkeys(_kind(str(row[0])) for row in rows)
    meanings = [
        [name, PROBES[name].unit, PROBES[name].meaning, PROBES[name].wrong]
        for name in kinds
        if name in PROBES
    ]
    sections = [
        page.section("Alarms", *[page.paragraph(alarm) for alarm in result["alarms"]]),
        page.section(
            "Figures by kind of person",
            page.paragraph(f"Scores are {result['scores']}; seed {result['seed']}."),
            page.table(head, rows, numbers=tuple(range(1, len(head)))),
        ),
        page.section(
            "What they mean", page.table(["figure", "unit", "meaning", "when something is wrong"], meanings)
        ),
        page.section("Not asked", page.table(["probe", "reason"], skipped)),
    ]
    page.write_page(directory, f"Probes of {result['policy']}", probes_verdict(result), sections)


def probes_verdict(result: JSONObject) -> Verdict:
    """Lost with an alarm, won where every probe was asked and none rang, unknown otherwise."""
    alarms, skipped = result["alarms"], result["skipped"]
    if alarms:
        more = f" and {len(alarms) - 1} more" if len(alarms) > 1 else ""
        return Verdict("lost", f"{len(alarms)} figures beyond their limit: {alarms[0]}{more}.")
    if skipped:
        names = ", ".join(one["probe"] for one in skipped)
        return Verdict("unknown", f"No figure beyond its limit, but not everything was asked: {names}.")
    return Verdict("won", "No figure beyond its limit.")


def table(result: JSONObject) -> tuple[list[str], list[list[object]]]:
    """Figures by bucket, and those that compare voices."""
    buckets = result["buckets"]
    names = list(dict.fromkeys(name for values in buckets.values() for name in values))
    rows: list[list[object]] = [[name, *(values.get(name) for values in buckets.values())] for name in names]
    rows += [[name, value, *[""] * (len(buckets) - 1)] for name, value in result["between"].items()]
    return ["figure", *buckets], rows


def _kind(name: str) -> str:
    head, _, _ = name.rpartition("/")
    return f"{head}/NAME" if f"{head}/NAME" in PROBES else name
