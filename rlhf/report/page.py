"""One self-contained HTML page: escaped text, tables that fold on a phone, dark or light; see `templates/`."""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import jinja2
from markupsafe import Markup, escape

from rewards import hashed, opening
from rewards.errors import UserError
from rewards.files import JSONObject, write_text
from rlhf.report.verdict import Verdict
from rlhf.run import metric_docs
from rlhf.run.metric_docs import METRICS, MetricDoc

FILE = "report.html"


class Script(NamedTuple):
    """The one script that a page may run, by its hash, and the data that it reads from a block called `name`."""

    name: str
    data: Markup
    code: Markup
    hash: str

    @classmethod
    def of(cls, file: str, name: str, data: object) -> "Script":
        """A file of `templates/`, and JSON in which nothing can end its block."""
        source, _, _ = _TEMPLATES.loader.get_source(_TEMPLATES, file)  # pyright: ignore[reportOptionalMemberAccess]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        text = (
            json.dumps(data, separators=(",", ":"), ensure_ascii=False)
            .replace("<", "\\u003c")
            .replace(">", "\\u003e")
        )
        return cls(name, Markup(text), Markup(source), f"sha256-{digest}")


def _breakable(value: object) -> Markup:
    """Escaped, and names such as kl_to_optimum may break at their underscores; cells break nowhere else in a word."""
    return Markup(str(escape(value)).replace("_", "_<wbr>"))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("rlhf.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["breakable"] = _breakable
_PARTS: Any = _TEMPLATES.get_template("parts.html").module


def joined(parts: Iterable[str]) -> Markup:
    """Parts of a page after one another; a plain string among them is escaped."""
    return Markup("").join(parts)


def number(value: object) -> str:
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


def measured(value: float | None, unit: str) -> str:
    """A figure with its unit; shares as percent."""
    if value is not None and unit == "share":
        return f"{value:.1%}"
    return f"{number(value)} {unit}" if unit else number(value)


def is_interval(value: object) -> TypeGuard[dict[str, float]]:
    return isinstance(value, dict) and set(value) == {"mean", "low", "high"}


def section(title: str, *parts: str) -> Markup:
    """A heading and its contents; nothing when there are no contents."""
    body = joined(parts)
    return _PARTS.section(title, body) if body else body


def heading(text: str, *, code: bool = False) -> Markup:
    """The title of a card; `code`: the name of a metric."""
    return _PARTS.heading(text, code)


def paragraph(text: str, kind: str = "") -> Markup:
    return _PARTS.paragraph(text, kind)


def figure(svg: str, caption: str = "") -> Markup:
    """A drawing of `rlhf.report.plots`, which is markup."""
    return _PARTS.figure(Markup(svg), caption)


def table(head: list[str], rows: Iterable[Iterable[object]], numbers: tuple[int, ...] = ()) -> Markup:
    """A table of escaped cells that becomes a list on a narrow screen; columns in `numbers` are figures."""
    cells = [
        [(number(cell) if column in numbers else cell, column in numbers) for column, cell in enumerate(row)]
        for row in rows
    ]
    return _PARTS.table(head, cells) if cells else Markup("")


def metric_table(values: JSONObject) -> Markup:
    """Every figure beside what it means; a name without an explanation is shown all the same."""
    rows = []
    for name, value in values.items():
        doc = METRICS.get(name, MetricDoc("Not explained here.", "", ""))
        rows.append((name, value, doc.unit, doc.meaning, doc.wrong))
    return table(["figure", "value", "unit", "meaning", "when something is wrong"], rows, numbers=(1,))


def metric_table_of(group: str, names: Iterable[str]) -> Markup:
    """What the figures of a group of metric_docs.toml mean, without values."""
    docs = metric_docs.group(group)
    rows = [(name, docs[name].unit, docs[name].meaning, docs[name].wrong) for name in names]
    return table(["figure", "unit", "meaning", "when something is wrong"], rows)


def bars(rows: Iterable[tuple[str, float]]) -> Markup:
    """Names with a share in [0, 1] each, as bars."""
    return _PARTS.bars([(name, value, f"{value:.1%}") for name, value in rows])


def cards(parts: Iterable[str]) -> Markup:
    shown = list(parts)
    return _PARTS.cards(shown) if shown else Markup("")


def sides(answers: Iterable[tuple[str, str, str, str]]) -> Markup:
    """Answers beside one another; each (whose, what it is worth, what was asked, what was said)."""
    shown = list(answers)
    same = len({asked for _, _, asked, _ in shown}) == 1
    return _PARTS.sides(shown, same)


def details(title: str, *parts: str) -> Markup:
    body = joined(parts)
    return _PARTS.details(title, body) if body else body


def write_page(
    directory: Path, title: str, verdict: Verdict, sections: Iterable[str], script: Script | None = None
) -> None:
    """Write `directory`/report.html whole or not at all; the verdict is its first line."""
    body = joined([*sections, provenance(directory)])
    text = _TEMPLATES.get_template("page.html").render(title=title, verdict=verdict, body=body, script=script)
    # An unpaired surrogate, which JSON can carry, has no UTF-8.
    write_text(directory / FILE, text.encode("utf-8", "replace").decode("utf-8"))


def provenance(directory: Path) -> Markup:
    """Where the numbers come from: environment.json and config.yaml of the run, as far as they are there."""
    record: JSONObject = {}
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
    with contextlib.suppress(UserError, OSError, UnicodeDecodeError):
        config = opening.text(directory / "config.yaml")
    settings = details("Configuration", _PARTS.verbatim(config)) if config else ""
    return section("Where these numbers come from", table(["", ""], rows), settings)
