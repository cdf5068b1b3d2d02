"""Parts of an evaluation's report that are about the runs behind the policies: how they were trained, what their rails do."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.policy import store as policy_store
from rlhf.policy.conditioning import rails_of
from rlhf.report import page, plots
from rlhf.run.metric_docs import METRICS, MetricDoc, explained
from rlhf.run.metrics import read_metrics

SHOWN = (
    "eval/reward",
    "eval/accuracy",
    "eval/loss/total",
    "train/reward",
    "train/loss/total",
    "train/kl_ref_nats",
)
MOST_CURVES, MOST_RUNS = 4, 8
RAILS = ("train/rails/", "train/guard/")


def curves(result: JSONObject) -> list[str]:
    """The main metrics of every run's training, a card each; runs that logged nothing are left out."""
    parts = []
    for place, names in _runs(result):
        rows = _logged(place)
        known = [name for name in SHOWN if any(name in row for row in rows)][:MOST_CURVES]
        if known:
            title = ", ".join(names)
            parts.append(page.details(title, page.cards(_card(name, rows) for name in known)))
    return _few(parts, "report.html of each run has all of its curves.")


def rails(result: JSONObject) -> list[str]:
    """What every run's rails allow, and how often rails and guardrails acted at the end of training."""
    rows: list[tuple[object, ...]] = []
    for place, names in _runs(result):
        name = ", ".join(names)
        with contextlib.suppress(UserError):  # damaged, or older: the page is about what was written
            rows += [(name, *row) for row in _allowed(policy_store.record_of(place), place)]
        logged = _logged(place)
        for metric in dict.fromkeys(key for row in logged for key in row if key.startswith(RAILS)):
            last = [row[metric] for row in logged if metric in row][-1]
            doc = explained(metric) or METRICS.get(metric, MetricDoc("Not explained here.", "", ""))
            rows.append((name, metric, f"{page.number(last)} {doc.unit}".strip(), doc.meaning))
    return (
        [page.table(["run", "rail or guardrail", "limit, or at the end of training", "meaning"], rows)]
        if rows
        else []
    )


def _allowed(record: JSONObject, place: str) -> Iterator[tuple[str, str, str]]:
    found = rails_of(record, place)
    if found is None:
        return
    for axis in found.axes:
        yield axis.name, str(axis), "How far a person's coefficient on this axis may be their own."
    for half in found.half_spaces:
        yield (
            half.name,
            f"at most {half.limit:+.3g}",
            "How far people's coefficients may go in this direction.",
        )
    if math.isfinite(found.trust_nats):
        yield (
            "trust region",
            f"{found.trust_nats:.3g} nats",
            "How far a person's policy may be from the one for everybody.",
        )


def _runs(result: JSONObject) -> Iterator[tuple[str, list[str]]]:
    """Run directories with the names of the policies that come from them."""
    found: dict[str, list[str]] = {}
    for name, one in result["policies"].items():
        if policy_store.is_run(one["source"]):
            found.setdefault(one["source"], []).append(name)
    yield from list(found.items())[:MOST_RUNS]


def _logged(place: str) -> list[JSONObject]:
    with contextlib.suppress(UserError):
        return read_metrics(place)
    return []


def _card(name: str, rows: list[JSONObject]) -> str:
    kept = [(row["step"], row[name]) for row in rows if name in row]
    values = np.array([np.nan if value is None else value for _, value in kept], np.float64)
    doc = explained(name) or METRICS.get(name, MetricDoc("Not explained here.", "", ""))
    drawn = plots.training_curve(np.array([step for step, _ in kept]), values, name)
    return page.joined(
        [page.heading(name, code=True), page.figure(drawn), page.paragraph(doc.meaning, "note")]
    )


def _few(parts: list[str], more: str) -> list[str]:
    return [*parts, page.paragraph(more, "note")] if parts else []
