"""What every reported number means, read from metric_docs.toml, which reports, console and docs/metrics.md share.

Rewards are w·φ, the log-odds of a person's choice: a difference of 0.1 moves the odds of preferring the
better answer by about 10 %. They are in nats; only differences between answers to one prompt mean something.
"""

import importlib.resources
import tomllib
from typing import NamedTuple


class MetricDoc(NamedTuple):
    """One metric.

    Attributes:
      meaning: one sentence.
      unit: "nats", "share", "tokens", …; "" for a pure number.
      wrong: what it looks like when something has gone wrong.
    """

    meaning: str
    unit: str
    wrong: str


_FILE = tomllib.loads(importlib.resources.files("rlhf.run").joinpath("metric_docs.toml").read_text("utf-8"))


def group(name: str) -> dict[str, MetricDoc]:
    """The metrics of one group of the file, by name."""
    return {metric: MetricDoc(**doc) for metric, doc in _FILE[name]["metrics"].items()}


TRAINING, RL, FIT = group("training"), group("rl"), group("fit")
REWARDS, EVALUATION, PROBES = group("rewards"), group("evaluation"), group("probes")
GROUPS = {_FILE[name]["title"]: group(name) for name in _FILE}

# Sampled completions give some names another meaning; reports of such runs ask `explained`.
METRICS: dict[str, MetricDoc] = RL | TRAINING | FIT | REWARDS | EVALUATION | PROBES


def explained(name: str) -> MetricDoc | None:
    """What a metric of `chorus train ppo` and `chorus train grpo` means; one of an output (`train/reward/length`) is
    explained by its kind (`train/reward/NAME`)."""
    head, _, _ = name.rpartition("/")
    return RL.get(name) or RL.get(f"{head}/NAME")


def markdown() -> str:
    """docs/metrics.md: every metric with its unit, meaning and failure signs."""
    lines = [
        "# Metrics",
        "",
        "<!-- Written by scripts/metrics_page.py from rlhf/run/metric_docs.toml; change it there. -->",
        "",
        "Rewards are w·φ, the log-odds of a person's choice, in nats; only differences between answers to "
        "one prompt",
        "mean something. The same explanations stand beside the numbers in every `report.html`.",
    ]
    for title, metrics in GROUPS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| name | unit | meaning | when something is wrong |",
            "|---|---|---|---|",
        ]
        lines += [f"| `{name}` | {doc.unit} | {doc.meaning} | {doc.wrong} |" for name, doc in metrics.items()]
    return "\n".join(lines) + "\n"
