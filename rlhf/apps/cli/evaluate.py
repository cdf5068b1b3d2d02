"""chorus evaluate."""

from rlhf.apps.cli.common import Subparsers, add_job


def add_parser(subparsers: Subparsers) -> None:
    add_job(
        subparsers,
        "evaluate",
        "does each person get answers that suit them: people by people matrix, controls, report.html",
        "chorus evaluate configs/electricity/evaluate.yaml policy=runs/electricity/policy",
        kind="evaluate",
        meshed=True,
        job="rlhf.evaluation.policy:run",
    )
