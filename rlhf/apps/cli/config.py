"""chorus config describe|new."""

import argparse
import dataclasses
import os
import textwrap

from rewards.errors import UserError
from rewards.files import JSONObject, write_text
from rlhf.apps.cli.common import Subparsers, add_command, add_group, add_short, short_values

TRAINABLE = ("rewards", "reward", "sft", "dpo", "ppo", "grpo")


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
        choices=(*TRAINABLE, "evaluate", "outputs", "sweep"),
        help=f"{', '.join(TRAINABLE)}, evaluate, outputs (evaluate with policies) or sweep",
    )
    new = add_command(
        group,
        "new",
        "a commented configuration for your model and data, the one that a run without a file uses",
        "chorus config new dpo --model smollm2-135m --data pairs.jsonl --output dpo.yaml",
        run_new,
        show_new,
    )
    new.add_argument("kind", metavar="KIND", choices=TRAINABLE, help=", ".join(TRAINABLE))
    add_short(new, "")
    new.add_argument("--output", metavar="FILE", help="file to write (default: standard output)")
    new.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="keys to set")


def run_new(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.defaults import commented, resolved

    _, values = resolved(args.kind, short_values(args), args.overrides)
    text = commented(args.kind, values)
    if args.output is not None:
        if os.path.exists(args.output):
            raise UserError(f"--output {args.output}: exists already; remove it or choose another name")
        write_text(args.output, text)
    return {"kind": args.kind, "path": args.output, "yaml": text}


def show_new(result: JSONObject) -> None:
    print(result["path"] or result["yaml"], end="\n" if result["path"] else "")


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
