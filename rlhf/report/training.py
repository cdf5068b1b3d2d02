"""report.html of `chorus train`: what the policy says at the start and at the end, then every metric of metrics.jsonl as a curve
beside what it means, reward and KL first, the rest grouped by meaning.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rewards.files import JSONObject
from rlhf.report import page, plots
from rlhf.report.verdict import Verdict
from rlhf.run.metric_docs import METRICS, MetricDoc, explained

_NOT_METRICS = ("step", "time")
_LOSS = "train/loss/total"
_MASS = "train/group_mass"
_KL = "train/kl_ref_nats"
_REWARD = "train/reward"
_SAMPLED = "train/kl_coef"  # only runs that sample their own completions have it
_SHOWN = 4
FEW_STEPS = 10  # logged iterations whose ends are single samples of other prompts

GROUPS = {
    "Reward and distance from the reference": (
        "train/reward",
        "train/reward_mean",
        "train/accuracy",
        "train/margin",
        _KL,
        _SAMPLED,
    ),
    "Held out": ("eval/",),
    "Loss": ("train/loss/",),
    "Rewards one by one": ("train/reward/", "train/reward_", "train/left_out_share", "train/logged/"),
    "What is written": (
        "train/completion",
        "train/eos_share",
        "train/token_entropy_nats",
        _MASS,
        "train/log_ratio_nats",
        "train/zero_variance_share",
    ),
    "Guardrails and rails": ("train/guard/", "train/rails/"),
    "Optimiser": (
        "train/learning_rate",
        "train/grad_norm",
        "train/update_norm",
        "train/param_norm",
        "train/skipped",
    ),
    "How the policy is updated": ("train/",),
    "Fit": ("fit/",),
    "Speed": ("perf/",),
    "Others": ("",),
}
"""Title → names of its metrics, in order, or how they begin (those with a slash or underscore at the end); the"
" first that fits counts."""


def write_training_report(
    directory: Path,
    metrics_rows: list[JSONObject],
    findings: Sequence[JSONObject] = (),
    samples: Sequence[JSONObject] = (),
) -> None:
    """Write report.html from the lines of metrics.jsonl (`rlhf.run.metrics.read_metrics`).

    Args:
      directory: run directory; environment.json and config.yaml there are shown as provenance.
      findings: what went wrong, worst first: name, severity, cause, changes, evidence (`rlhf.train.diagnosis.findings.Finding`).
      samples: entries of samples.jsonl, of runs that sample their own completions.
    Raises:
      UserError: the page cannot be written.
    """
    names = dict.fromkeys(name for row in metrics_rows for name in row if name not in _NOT_METRICS)
    curves = {name: _series(metrics_rows, name) for name in names}
    sampled = _SAMPLED in names
    sections = [_findings_section(findings), _samples_section(samples)]
    sections += [
        page.section(title, page.cards(_card(name, *curves[name], sampled) for name in members))
        for title, members in grouped(names).items()
    ]
    verdict = _with_findings(_with_held_out(training_verdict(curves), curves), findings)
    page.write_page(Path(directory), "Training", verdict, sections)


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """The names under the titles of GROUPS, in their order there, then as they came."""
    found: dict[str, list[tuple[int, str]]] = {title: [] for title in GROUPS}
    for name in names:
        title, place = next(
            (title, place)
            for title, members in GROUPS.items()
            for place, member in enumerate(members)
            if name == member or (member not in _WHOLE and name.startswith(member))
        )
        found[title].append((place, name))
    return {
        title: [name for _, name in sorted(members, key=lambda one: one[0])]
        for title, members in found.items()
    }


_WHOLE = frozenset(GROUPS["Reward and distance from the reference"])


def _samples_section(samples: Sequence[JSONObject]) -> str:
    """Answers to prompts at the first and at the last sampling, side by side; the same prompts where there are any."""
    steps = sorted({int(entry["step"]) for entry in samples})
    if len(steps) < 2:
        return ""
    first, last = (
        {json.dumps(entry["prompt"]): entry for entry in samples if entry["step"] == step}
        for step in (steps[0], steps[-1])
    )
    both = [key for key in first if key in last]
    pairs = [(first[key], last[key]) for key in both] or list(
        zip(first.values(), last.values(), strict=False)
    )
    articles = [
        page.sides(
            [
                (
                    f"step {entry['step']}",
                    f"reward {page.number(entry['reward'])}",
                    asked(entry),
                    entry["completion"],
                )
                for entry in pair
            ]
        )
        for pair in pairs[:_SHOWN]
    ]
    same = "" if both else " Different prompts were drawn then."
    note = f"Completions drawn at step {steps[0]} and at step {steps[-1]}; samples.jsonl has more.{same}"
    return page.section("What it says, before and after", page.paragraph(note, "note"), *articles)


def asked(entry: JSONObject) -> str:
    """The prompt of a sample as text."""
    prompt = entry["prompt"]
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def _findings_section(findings: Sequence[JSONObject]) -> str:
    rows = []
    for one in findings:
        numbers = ", ".join(f"{name} {page.number(value)}" for name, value in one["evidence"].items())
        changes = "; ".join(f"{key}: {what}" for key, what in one["changes"])
        rows.append((f"{one['severity']}: {one['name']}", one["cause"], changes, numbers))
    table = page.table(["finding", "likely cause", "what to change", "numbers"], rows)
    note = page.paragraph("What each finding looks like: docs/rl-diagnosis.md.", "note") if rows else ""
    return page.section("What goes wrong", table, note)


def _with_findings(verdict: Verdict, findings: Sequence[JSONObject]) -> Verdict:
    """The first line names what was found; a run that must be stopped has not been won."""
    names = ", ".join(one["name"] for one in findings if one["severity"] != "note")
    if not names:
        return verdict
    status = "lost" if any(one["severity"] == "stop" for one in findings) else verdict.status
    return Verdict(status, f"{verdict.text} Found: {names}; see below.")


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
    if _SAMPLED in curves:
        return _sampled_verdict(curves)
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


def _with_held_out(verdict: Verdict, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Verdict:
    """The first line says what became of held-out data, and when it was best."""
    name = next(
        (name for name in ("eval/reward", "eval/accuracy", "eval/loss/total") if name in curves), None
    )
    if name is None or not np.isfinite(curves[name][1]).all():
        return verdict
    steps, values = curves[name]
    best = int(np.argmin(values) if "loss" in name else np.argmax(values))
    text = f"{name} on held-out data: {values[0]:.4g} at step {int(steps[0])}"
    if len(values) > 1:
        text += f", best {values[best]:.4g} at step {int(steps[best])}, {values[-1]:.4g} at the end"
    return Verdict(verdict.status, f"{verdict.text} {text}.")


def _sampled_verdict(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Verdict:
    """Of policy gradients: the objective is the reward less its price; the loss need not fall."""
    steps, reward = curves[_REWARD]
    price = curves[_SAMPLED][1] * curves[_KL][1]
    (first, last), (before, after) = _ends(reward), _ends(reward - price)
    nats = _ends(curves[_KL][1])[1]
    moved = f"{first:.4g} to {last:.4g} in {int(steps[-1])} iterations, {nats:.3g} nats from the reference"
    if len(reward) < FEW_STEPS:
        return Verdict("unknown", f"Too short to judge: the reward went from {moved}.")
    if last <= first:
        return Verdict("lost", f"The reward did not rise: from {moved}.")
    if after <= before:
        return Verdict(
            "lost",
            f"The reward rose from {moved}, but the KL cost more than that: lower optimizer.learning_rate.",
        )
    return Verdict("won", f"The reward rose from {moved}.")


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Means of the first and the last tenth: single steps are noisy."""
    width = max(1, len(values) // 10)
    return float(values[:width].mean()), float(values[-width:].mean())


def _series(rows: list[JSONObject], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have the metric; null (not finite) is NaN."""
    kept = [(row["step"], row[name]) for row in rows if name in row]
    steps = np.array([step for step, _ in kept])
    return steps, np.array([np.nan if value is None else value for _, value in kept], np.float64)


def _card(name: str, steps: np.ndarray, values: np.ndarray, sampled: bool) -> str:
    doc = (explained(name) if sampled else None) or METRICS.get(
        name, MetricDoc("Not explained here.", "", "")
    )
    last = page.measured(float(values[-1]) if np.isfinite(values[-1]) else None, doc.unit)
    drawn = plots.training_curve(steps, values, name, doc.unit)
    wrong = [page.details("When something is wrong", page.paragraph(doc.wrong, "note"))] if doc.wrong else []
    return page.joined(
        [
            page.heading(name, code=True),
            page.paragraph(f"at the end {last}"),
            page.figure(drawn),
            page.paragraph(doc.meaning),
            *wrong,
        ]
    )
