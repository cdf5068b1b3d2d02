"""chorus train sft|dpo."""

import argparse
from typing import Any

from rlhf.cli.common import add_command, add_config, add_group, load_config, show_values


def add_parser(subparsers: Any) -> None:
    group = add_group(subparsers, "train", "train a policy; the same command again resumes")
    sft = add_command(
        group,
        "sft",
        "supervised start: learn the completions of the data",
        "chorus train sft configs/electricity/sft.yaml train.steps=50",
        run_sft,
        show_values,
    )
    add_config(sft, "sft")
    dpo = add_command(
        group,
        "dpo",
        "one policy conditioned on people's coefficients, or a plain DPO-family policy",
        "chorus train dpo configs/electricity/dpo.yaml rewards=runs/electricity/rewards",
        run_dpo,
        show_values,
    )
    add_config(dpo, "dpo")


def run_sft(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args, "sft")
    from rlhf.jobs.sft import run

    return run(config)


def run_dpo(args: argparse.Namespace) -> dict[str, Any]:
    config = load_config(args, "dpo")
    from rlhf.jobs.dpo import run

    return run(config)
