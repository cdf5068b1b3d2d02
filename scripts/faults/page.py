"""Counts of what was killed, interrupted, done at once and damaged: docs/results/interruptions.json and .md."""

import datetime
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parents[1]))

import pages

from rewards.files import write_text

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "results" / "interruptions"
KINDS = ("kills", "signals", "updates", "flips")
WORDS = 1500  # characters of a failure's output that are kept


def add(path: Path, kind: str, rounds: Sequence[dict[str, Any]], *, fresh: bool = False) -> None:
    """Add rounds to the stored counts; several processes may."""
    lock = (
        Path(tempfile.gettempdir())
        / f"faults-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}.lock"
    )
    with FileLock(lock):
        stored = read(path)
        part = {"revision": revision(), "date": str(datetime.date.today()), "counts": {}, "problems": []}
        if not fresh:
            part = stored.get(kind, part) | {"last": part["revision"], "date": part["date"]}
        for one in rounds:
            count(part, one)
        pages.write_numbers(path.with_suffix(".json"), {**stored, kind: part})


def read(path: Path) -> dict[str, Any]:
    file = path.with_suffix(".json")
    return pages.read_numbers(file) if file.is_file() else {}


def count(part: dict[str, Any], one: dict[str, Any]) -> None:
    """Sums by command and what was done to it; the longest of what is timed; problems as they are."""
    key = " / ".join(filter(None, [one["command"], one.get("signals", "")]))
    sums = part["counts"].setdefault(key, {"rounds": 0, "right": 0})
    sums["rounds"] += 1
    sums["right"] += "problem" not in one
    for name in ("kills", "ends", "answers", "refused", "same", "late", "whole"):
        if name in one:
            sums[name] = sums.get(name, 0) + int(one[name])
    if "seconds_after" in one:
        sums["seconds_after"] = max(sums.get("seconds_after", 0.0), one["seconds_after"])
    if "status" in one:
        statuses = sums.setdefault("status", {})
        statuses[str(one["status"])] = statuses.get(str(one["status"]), 0) + 1
    if "problem" in one:
        words = one.get("words", "")
        part["problems"].append({"what": key, "problem": one["problem"], "words": words[-WORDS:]})


def revision() -> str:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def write(path: Path) -> None:
    """The page from the stored counts."""
    write_text(path.with_suffix(".md"), text(read(path)))


def text(stored: dict[str, Any]) -> str:
    lines = [
        "# Kills, signals, concurrent updates, damaged files",
        "",
        "`scripts/faults/interrupt.py`, `scripts/faults/at_once.py` and `scripts/faults/flips.py`, on the tiny model of",
        "`tests/golden/old_runs`. Half of the instants are uniform over the time of an undisturbed command, the seconds of",
        "imports included; the other half follow a change of the run directory's files. *Right* means: for a kill, that the same",
        "command then ended with the numbers, weights and reports of an undisturbed one and left no temporary file; for a",
        "signal, that besides the status was that of the signal (130, 143, 129), that there was no traceback, and that in",
        "training no step whose numbers were written was missing from the checkpoint (of a single signal). Left out of what is",
        "compared: times, speeds, TensorBoard's files. Where a process hangs for four minutes it counts as not right.",
    ]
    for kind in KINDS:
        if kind in stored:
            lines += ["", *_section(kind, stored[kind])]
    return "\n".join(lines) + "\n"


def _section(kind: str, part: dict[str, Any]) -> list[str]:
    counts, problems = part["counts"], part["problems"]
    since = part["revision"]
    last = part.get("last", since)
    made = f"{f'Revision {since}' if last == since else f'Revisions {since} to {last}'}, {part['date']}."
    total = _total(counts)
    if kind == "kills":
        lines = [
            "## SIGKILL",
            "",
            "| command | kills | runs to the end | the same as undisturbed |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {one['kills']} | {one['rounds']} | {one['right']} |" for name, one in counts.items()
        ]
        lines += [f"| all | {total['kills']} | {total['rounds']} | {total['right']} |", "", made]
    elif kind == "signals":
        lines = [
            *(
                "## Signals",
                "",
                "| signals | came in time | status | right | ends | longest until the end, s |",
            ),
            "|---|---|---|---|---|---|",
        ]
        for signals, one in _by_signals(counts).items():
            statuses = ", ".join(
                f"{status}: {number}" for status, number in sorted(one["status"].items()) if status != "0"
            )
            in_time = one["rounds"] - one.get("late", 0)
            lines.append(
                f"| {signals} | {in_time} | {statuses} | {one['right']} of {one['rounds']} | {one['ends']} "
                f"| {one['seconds_after']} |"
            )
        commands = sorted({name.split(" / ")[0] for name in counts})
        lines += ["", f"Over {', '.join(commands)}; {total['rounds'] - total.get('late', 0)} in time. {made}"]
    elif kind == "updates":
        lines = ["## Concurrent updates of one person", ""]
        lines += [
            f"- {name}: {one['answers']} answers in {one['rounds']} records; right {one['right']} of {one['rounds']}"
            for name, one in counts.items()
        ]
        lines += ["", made]
    else:
        lines = [
            *(
                "## One bit turned",
                "",
                "| file | flips | refused by name or made again | nothing changed | used |",
            ),
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {one['rounds']} | {one.get('refused', 0)} | {one.get('same', 0)} | {one['rounds'] - one['right']} |"
            for name, one in counts.items()
        ]
        lines += [
            f"| all | {total['rounds']} | {total.get('refused', 0)} | {total.get('same', 0)} "
            f"| {total['rounds'] - total['right']} |"
        ]
        lines += ["", made]
    if problems:
        lines += ["", f"Not right, {len(problems)}:", ""]
        lines += [f"- {one['what']}: {one['problem']}" for one in problems[:20]]
    return lines


def _total(counts: dict[str, Any]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts.values():
        for name, value in one.items():
            if isinstance(value, int):
                total[name] = total.get(name, 0) + value
    return total


def _by_signals(counts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, one in counts.items():
        sums = found.setdefault(name.split(" / ")[1], {"status": {}, "seconds_after": 0.0})
        for key in ("rounds", "right", "late", "ends"):
            sums[key] = sums.get(key, 0) + one.get(key, 0)
        sums["seconds_after"] = max(sums["seconds_after"], one.get("seconds_after", 0.0))
        for status, number in one.get("status", {}).items():
            sums["status"][status] = sums["status"].get(status, 0) + number
    return found
