"""report.html of `chorus compare`: pairs first, then figures and settings side by side."""

from pathlib import Path

from rewards.files import JSONObject
from rlhf.report import page
from rlhf.report.verdict import Verdict


def write_compare_report(directory: Path, result: JSONObject) -> None:
    """Write report.html; `result` as `chorus compare` returns it."""
    names = [one["name"] for one in result["runs"]]
    pairs = [
        (
            " minus ".join(one["runs"]),
            one["what"],
            page.number(one["difference"]),
            one["over"],
            page.number(one["detectable"]),
        )
        for one in result["pairs"]
    ]
    figures = [
        (key, *(page.number(values[name]) if values[name] is not None else "–" for name in names))
        for key, values in result["figures"].items()
    ]
    settings = [
        (key, *("–" if values[n] is None else str(values[n]) for n in names))
        for key, values in result["settings"].items()
    ]
    sections = [
        page.section(
            "Runs",
            page.table(
                ["run", "kind", "folder"], [(one["name"], one["kind"], one["path"]) for one in result["runs"]]
            ),
        ),
        page.section("Paired", page.table(["runs", "what", "difference", "over", "would be found"], pairs)),
        page.section(
            "What each found", page.table(["run", ""], [row for row in result["verdicts"].items() if row[1]])
        ),
        page.section("Figures", page.table(["figure", *names], figures)),
        page.section("Settings that differ", page.table(["key", *names], settings)),
    ]
    text = f"{len(names)} runs side by side; {len(result['settings'])} settings differ."
    page.write_page(directory, "Runs side by side", Verdict("unknown", text), sections)
