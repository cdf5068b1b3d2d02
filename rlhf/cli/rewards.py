"""chorus rewards fit|evaluate."""

import argparse
from typing import Any

from rlhf.cli.common import add_command, add_config, add_group, load_config, show_values


def add_parser(subparsers: Any) -> None:
    group = add_group(subparsers, "rewards", "fit and test a basis of rewards with people's coefficients")
    fit = add_command(
        group,
        "fit",
        "fit basis, population and people from preferences",
        "chorus rewards fit configs/electricity/rewards.yaml fit.num_basis=4",
        run_fit,
        show_values,
    )
    add_config(fit, "rewards")
    evaluate = add_command(
        group,
        "evaluate",
        "replay held-out people's answers: accuracy after 0, 1, 2, ... questions, with controls",
        "chorus rewards evaluate configs/electricity/rewards.yaml",
        run_evaluate,
        show_values,
    )
    add_config(evaluate, "rewards")


def run_fit(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args, "rewards")
    from rlhf.jobs.rewards import fit

    return fit(config)


def run_evaluate(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args, "rewards")
    from rlhf.jobs.rewards import evaluate_rewards

    return evaluate_rewards(config)
