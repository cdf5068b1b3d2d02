"""chorus config describe."""

import argparse
import dataclasses
import textwrap

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_group


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "config", "reference of configuration keys")
    parser = add_command(
        group,
        "describe",
        "every key of a configuration, with type, default and meaning",
        "chorus config describe dpo",
        run,
        show,
    )
    parser.add_argument(
        "kind",
        metavar="KIND",
        choices=("rewards", "sft", "dpo", "ppo", "grpo", "evaluate", "sweep"),
        help="rewards, sft, dpo, ppo, grpo, evaluate or sweep",
    )


def run(args: argparse.Namespace) -> JSONObject:
    from rlhf.run.config.describe import describe, schema_of

    return {
        "kind": args.kind,
        "keys": [dataclasses.asdict(entry) for entry in describe(schema_of(args.kind))],
    }


def show(result: JSONObject) -> None:
    from rlhf.run.config.document import dump

    for entry in result["keys"]:
        default = "required" if entry["required"] else "default " + dump(entry["default"], flow=True)
        limits = f", {entry['limits']}" if entry["limits"] else ""
        print(f"{entry['key']}  ({entry['type']}{limits}; {default})")
        print(textwrap.indent(textwrap.fill(entry["doc"], 96), "    "))
