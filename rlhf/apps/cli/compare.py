"""chorus compare."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "compare",
        "runs side by side: figures, settings that differ, pairs where both evaluated the same",
        "chorus compare runs/one runs/other --output runs/compared",
        run,
        show,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories, of any kind")
    parser.add_argument("--output", metavar="DIR", help="folder for compare.json, compare.md and report.html")


def run(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.compare import compare

    return compare(args.runs, args.output)


def show(result: JSONObject) -> None:
    from rlhf.apps.compare import markdown

    print(markdown(result), end="")
