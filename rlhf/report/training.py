"""report.html of `chorus train`: every metric of metrics.jsonl as a curve beside what it means."""

from pathlib import Path
from typing import Any

import numpy as np

from rlhf.metric_docs import METRICS, MetricDoc
from rlhf.report import page, plots
from rlhf.report.verdict import Verdict

_NOT_METRICS = ("step", "time")
_LOSS = "train/loss/total"
_MASS = "train/group_mass"
_KL = "train/kl_ref_nats"


def write_training_report(directory: Path, metrics_rows: list[dict[str, Any]]) -> None:
    """Write report.html from the lines of metrics.jsonl (`rlhf.metrics.read_metrics`).

    Args:
      directory: run directory; environment.json and config.yaml there are shown as provenance.
    Raises:
      UserError: the page cannot be written.
    """
    names = dict.fromkeys(name for row in metrics_rows for name in row if name not in _NOT_METRICS)
    curves = {name: _series(metrics_rows, name) for name in names}
    groups = {"train/": "Training", "fit/": "Fit", "perf/": "Speed"}
    sections = [
        page.section(
            title, page.cards(_card(name, *curves[name]) for name in names if name.startswith(prefix))
        )
        for prefix, title in groups.items()
    ]
    others = [name for name in names if not name.startswith(tuple(groups))]
    sections.append(page.section("Others", page.cards(_card(name, *curves[name]) for name in others)))
    page.write_page(Path(directory), "Training", training_verdict(curves), sections)


def training_verdict(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Verdict:
    """Did training do what it should? Looks at the loss and at two signs that it fell for nothing.

    Args:
      curves: name → (steps, values), NaN where a value was not finite.
    """
    broken = [name for name, (_, values) in curves.items() if not np.isfinite(values).all()]
    if broken:
        return Verdict("lost", f"Training broke down: not finite at some step: {', '.join(broken)}.")
    if _LOSS not in curves or len(curves[_LOSS][0]) < 2:
        return Verdict("unknown", "Not to be judged: fewer than two steps were logged.")
    steps, loss = curves[_LOSS]
    first, last = _ends(loss)
    warnings = []
    if _MASS in curves:
        before, after = _ends(curves[_MASS][1])
        if after < 0.5 * before:
            warnings.append(
                f"the probability of the known completions fell from {before:.3g} to {after:.3g}: raise "
                "loss.nll_coef"
            )
    if _KL in curves and curves[_KL][1].min() < -1e-3:
        warnings.append(
            f"a KL divergence is negative ({curves[_KL][1].min():.3g}): precision or masking is wrong"
        )
    tail = f" But {'; and '.join(warnings)}." if warnings else ""
    if last >= first:
        return Verdict(
            "lost",
            f"The loss did not fall: {first:.4g} at first, {last:.4g} after {int(steps[-1])} steps.{tail}",
        )
    text = f"The loss fell from {first:.4g} to {last:.4g} in {int(steps[-1])} steps.{tail}"
    return Verdict("lost" if warnings else "won", text)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Means of the first and the last tenth: single steps are noisy."""
    width = max(1, len(values) // 10)
    return float(values[:width].mean()), float(values[-width:].mean())


def _series(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have the metric; null (not finite) is NaN."""
    kept = [(row["step"], row[name]) for row in rows if name in row]
    steps = np.array([step for step, _ in kept])
    return steps, np.array([np.nan if value is None else value for _, value in kept], np.float64)


def _card(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    doc = METRICS.get(name, MetricDoc("Not explained here.", "", ""))
    last = page.number(float(values[-1])) if np.isfinite(values[-1]) else page.number(None)
    unit = f" {doc.unit}" if doc.unit else ""
    drawn = plots.training_curve(steps, values, name)
    return (
        f"<h3><code>{page.escape(name)}</code></h3>"
        + page.paragraph(f"at the end {last}{unit}")
        + f"<figure>{drawn}</figure>"
        + page.paragraph(doc.meaning)
        + (page.paragraph(f"When something is wrong: {doc.wrong}", "note") if doc.wrong else "")
    )
