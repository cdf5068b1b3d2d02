"""What the groups share: a subcommand with an example, the configuration arguments, small tables."""

import argparse
import importlib
import re
from collections.abc import Callable

from rewards.errors import UserError
from rewards.files import JSONObject

Subparsers = argparse._SubParsersAction  # what `add_subparsers` returns has no public name
Run = Callable[[argparse.Namespace], JSONObject | None]
Show = Callable[[JSONObject], None]


def add_group(subparsers: Subparsers, name: str, help: str) -> Subparsers:
    """A command that has subcommands of its own; alone it prints its help."""
    parser = subparsers.add_parser(name, help=help, description=help)

    def run(args: argparse.Namespace) -> None:
        parser.print_help()

    parser.set_defaults(run=run, show=None, json=False, parser=parser)
    return parser.add_subparsers(dest="subcommand", metavar="COMMAND")


def add_command(
    subparsers: Subparsers, name: str, help: str, example: str, run: Run, show: Show | None = None
) -> argparse.ArgumentParser:
    """A subcommand with --help, an example and --json."""
    parser = subparsers.add_parser(name, help=help, description=help, epilog=f"example:\n  {example}")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, last on stdout"
    )
    parser.set_defaults(run=run, show=show, parser=parser)
    return parser


def add_job(
    subparsers: Subparsers,
    name: str,
    help: str,
    example: str,
    *,
    kind: str,
    job: str,
    show: Show | None = None,
) -> None:
    """A subcommand that reads a configuration of `kind` and hands it to `job`, a "module:function"."""

    def run(args: argparse.Namespace) -> JSONObject:
        from rlhf.run.config.describe import schema_of
        from rlhf.run.config.load import load

        config = load(args.config, args.overrides, schema_of(kind))
        module, _, function = job.partition(":")
        return getattr(importlib.import_module(module), function)(config)

    parser = add_command(subparsers, name, help, example, run, show or show_values)
    parser.add_argument("config", metavar="CONFIG", help=f"YAML file; keys: chorus config describe {kind}")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="override a key, e.g. train.steps=100"
    )


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside low … high, not-a-number included."""
    if not low <= value <= high:
        raise UserError(f"{option} {value}: must be at least {low} and at most {high}")


def add_seed(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--seed", type=_seed, default=0, help=f"{help} (default 0)")


def _seed(text: str) -> int:
    """JAX takes 32 bits and drops the rest without a word."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def show_path(result: JSONObject) -> None:
    print(result["path"])


def show_values(result: JSONObject, prefix: str = "") -> None:
    """Print nested results as `name  value` lines; what is long or nested in lists is left to --json."""
    for name, value in result.items():
        if isinstance(value, dict):
            show_values(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            if value and len(value) <= 20 and not any(isinstance(part, (dict, list)) for part in value):
                print(f"{prefix}{name}  {', '.join(map(_short, value))}")
        elif value is not None:
            print(f"{prefix}{name}  {_short(value)}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
