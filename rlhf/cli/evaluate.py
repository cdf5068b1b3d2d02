"""chorus evaluate."""

import argparse
from typing import Any

from rlhf.cli.common import add_command, add_config, load_config, show_values


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        "does each person get answers that suit them: people by people matrix, controls, report.html",
        "chorus evaluate configs/electricity/evaluate.yaml policy=runs/electricity/policy",
        run,
        show_values,
    )
    add_config(parser, "evaluate")


def run(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args, "evaluate")
    from rlhf.jobs.evaluate import run as evaluate

    return evaluate(config)
