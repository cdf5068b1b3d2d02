"""One self-contained HTML page: escaped text, tables that fold on a phone, dark or light."""

import contextlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rewards import hashed
from rewards.errors import UserError
from rewards.files import write_text
from rlhf.report.verdict import Verdict
from rlhf.run.metric_docs import METRICS, MetricDoc

FILE = "report.html"
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2024;--faint:#6b7280;--grid:#e2e5e9;--panel:#f5f6f8;
--blue:#2563c9;--orange:#c2570c;--green:#15803d;--grey:#7a808a;--won:#15803d;--lost:#b42318;--unknown:#8a6100}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e6e8ea;--faint:#9aa3ad;--grid:#31373d;--panel:#1e2327;
--blue:#6ea8fe;--orange:#f59e4b;--green:#4cc38a;--grey:#9aa3ad;--won:#4cc38a;--lost:#ff8a7a;--unknown:#e2b93b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.15rem;color:var(--faint);font-weight:600;margin:.8rem 0}
h2{font-size:1.2rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:.2rem 0}
.verdict{font-size:1.2rem;font-weight:600;border-left:.4rem solid var(--unknown);padding:.5rem .8rem;margin:0;
background:var(--panel)}
.verdict.won{border-color:var(--won)}.verdict.lost{border-color:var(--lost)}
figure{margin:1rem 0;max-width:38rem}
figure svg{display:block;width:100%;height:auto}
figcaption,.note{color:var(--faint);font-size:.9rem}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .5rem;border-bottom:1px solid var(--grid)}
td.number{white-space:nowrap;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
code,pre{font:.85em/1.4 ui-monospace,monospace}
pre{white-space:pre-wrap;background:var(--panel);padding:.6rem;margin:.3rem 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:.8rem}
.card{background:var(--panel);padding:.7rem .8rem;min-width:0}
.card figure{margin:.3rem 0}
.text{white-space:pre-wrap;margin:.3rem 0}
@media(max-width:40rem){table.fold thead{display:none}table.fold tr{display:block;padding:.4rem 0;
border-bottom:1px solid var(--grid)}table.fold td{display:block;border:0;padding:.05rem 0;white-space:normal}
table.fold td[data-head]:before{content:attr(data-head)": ";color:var(--faint)}}
"""


def escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def number(value: Any) -> str:
    """A figure for people: counts whole, others with four significant digits, null as "not finite"."""
    if value is None:
        return "not finite"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if is_interval(value):
        return f"{number(value['mean'])} ({number(value['low'])} to {number(value['high'])})"
    return str(value)


def is_interval(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"mean", "low", "high"}


def section(title: str, *parts: str) -> str:
    """A heading and its contents; nothing when there are no contents."""
    body = "".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: list[str], rows: Iterable[Iterable[Any]], numbers: tuple[int, ...] = ()) -> str:
    """A table of escaped cells that becomes a list on a narrow screen; columns in `numbers` are figures."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = [
        "".join(
            f'<td data-head="{escape(head[column])}"{_class("number" if column in numbers else "")}>'
            f"{_breakable(escape(number(cell) if column in numbers else cell))}</td>"
            for column, cell in enumerate(row)
        )
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    inside = f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="fold">{inside}</table></div>'


def metric_table(values: dict[str, Any]) -> str:
    """Every figure beside what it means; a name without an explanation is shown all the same."""
    rows = []
    for name, value in values.items():
        doc = METRICS.get(name, MetricDoc("Not explained here.", "", ""))
        rows.append((name, value, doc.unit, doc.meaning, doc.wrong))
    return table(["figure", "value", "unit", "meaning", "when something is wrong"], rows, numbers=(1,))


def cards(parts: Iterable[str]) -> str:
    body = "".join(f'<div class="card">{part}</div>' for part in parts)
    return f'<div class="cards">{body}</div>' if body else ""


def details(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def write_page(directory: Path, title: str, verdict: Verdict, sections: Iterable[str]) -> None:
    """Write `directory`/report.html whole or not at all; the verdict is its first line."""
    body = "".join(sections) + provenance(directory)
    # The policy forbids every request, whatever a user's text may hold.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title><style>{_STYLE}</style></head><body>
<p class="verdict {verdict.status}">{escape(verdict.text)}</p>
<h1>{escape(title)}</h1>
{body}</body></html>
"""
    # An unpaired surrogate, which JSON can carry, has no UTF-8.
    write_text(directory / FILE, text.encode("utf-8", "replace").decode("utf-8"))


def provenance(directory: Path) -> str:
    """Where the numbers come from: environment.json and config.yaml of the run, as far as they are there."""
    record: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        record = hashed.read_record(directory / "environment.json")
    rows = [("seed", record["seed"])] if "seed" in record else []
    sessions = record.get("sessions", [])
    for session in sessions[-1:]:
        rows += [
            ("command", " ".join(session.get("command", []))),
            ("started", session.get("started", "not recorded")),
            ("sessions", len(sessions)),
            (
                "versions",
                ", ".join(f"{name} {version}" for name, version in session.get("versions", {}).items()),
            ),
            ("platform", session.get("platform", "not recorded")),
            ("devices", ", ".join(session.get("devices", []))),
            ("code", json.dumps(session["git"]) if session.get("git") else "installed package"),
        ]
    config = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        config = (directory / "config.yaml").read_text(encoding="utf-8")
    settings = details("Configuration", f"<pre>{escape(config)}</pre>") if config else ""
    return section("Where these numbers come from", table(["", ""], rows), settings)


def _breakable(text: str) -> str:
    """Let names such as kl_to_optimum break at their underscores; cells break nowhere else inside a word."""
    return text.replace("_", "_<wbr>")


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
