"""chorus quickstart."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_seed


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "quickstart",
        "the whole story on real data: fit rewards, train one policy, two people ask it the same question",
        "chorus quickstart --output-dir runs/quickstart",
        run,
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        default="runs/quickstart",
        help="run directory (default runs/quickstart)",
    )
    add_seed(parser, "seed of everything random")


def run(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.quickstart import run as quickstart

    return quickstart(args.output_dir, seed=args.seed)
