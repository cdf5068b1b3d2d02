"""What the groups share: a subcommand with an example, the configuration arguments, small tables."""

import argparse
from collections.abc import Callable
from typing import Any

Run = Callable[[argparse.Namespace], dict[str, Any] | None]
Show = Callable[[dict[str, Any]], None]


def add_group(subparsers: Any, name: str, help: str) -> Any:
    """A command that has subcommands of its own; alone it prints its help."""
    parser = subparsers.add_parser(name, help=help, description=help)

    def run(args: argparse.Namespace) -> None:
        parser.print_help()

    parser.set_defaults(run=run, show=None, json=False, parser=parser)
    return parser.add_subparsers(dest="subcommand", metavar="COMMAND")


def add_command(
    subparsers: Any, name: str, help: str, example: str, run: Run, show: Show | None = None
) -> Any:
    """A subcommand with --help, an example and --json."""
    parser = subparsers.add_parser(name, help=help, description=help, epilog=f"example:\n  {example}")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, last on stdout"
    )
    parser.set_defaults(run=run, show=show, parser=parser)
    return parser


def add_config(parser: Any, kind: str) -> None:
    parser.add_argument("config", metavar="CONFIG", help=f"YAML file; keys: chorus config describe {kind}")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="override a key, e.g. train.steps=100"
    )


def load_config(args: argparse.Namespace, kind: str) -> Any:
    from rlhf.config.describe import schema_of
    from rlhf.config.load import load

    return load(args.config, args.overrides, schema_of(kind))


def show_values(result: dict[str, Any], prefix: str = "") -> None:
    """Print nested results as `name  value` lines."""
    for name, value in result.items():
        if isinstance(value, dict):
            show_values(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            print(f"{prefix}{name}  {value:.4g}")
        elif not (isinstance(value, (list, tuple)) and len(value) > 20):
            print(f"{prefix}{name}  {value}")
