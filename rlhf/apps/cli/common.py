"""What the groups share: a subcommand with an example, the configuration arguments, small tables."""

import argparse
import importlib
import logging
import os
import re
from collections.abc import Callable
from typing import Any

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
    parser.set_defaults(run=run, show=show, parser=parser, meshed=False)
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
    options: bool = False,
    dry_run: str | None = None,
    meshed: bool = False,
) -> None:
    """A subcommand that reads a configuration of `kind` and hands it to `job`, a "module:function".

    Args:
      options: whether it runs without a file, too: then the kind takes `SHORT` options.
      dry_run: what --dry-run calls instead of `job`; None for kinds without it.
      meshed: whether several processes may share the work.
    """

    def read(args: argparse.Namespace) -> Any:
        from rlhf.run.config.describe import schema_of
        from rlhf.run.config.load import load

        args.overrides = [*job_values(args), *args.overrides]
        return configuration(args, kind) if options else load(args.config, args.overrides, schema_of(kind))

    def run(args: argparse.Namespace) -> JSONObject:
        from rlhf.run import cluster

        config = read(args)
        if meshed:
            cluster.enter(config.mesh)
        if dry_run is not None and args.dry_run:
            args.show = show_values
            return _found(dry_run)(config, device_gb=args.device_gb)
        return _found(job)(config)

    parser = add_command(subparsers, name, help, example, run, show or show_values)
    parser.set_defaults(read=read)
    if options:
        add_short(parser, kind)
    if dry_run is not None:
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="resolve and compile everything, say what a device will hold, run one step on zeros, write nothing",
        )
        parser.add_argument(
            "--device-gb",
            type=float,
            metavar="GB",
            help="with --dry-run: judge by this memory of a device instead of this machine's, and run nothing",
        )
    if meshed:
        parser.set_defaults(meshed=True)
        add_job_options(parser)
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?" if options else None,
        help=f"YAML file; keys: chorus config describe {kind}"
        + ("; or --model and --data" if options else ""),
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="override a key, e.g. train.steps=100"
    )


JOB = {
    "coordinator": ("HOST:PORT", "where process 0 of a job of several processes listens"),
    "processes": ("N", "processes of the job; 1: this one alone"),
    "process": ("I", "number of this process, from 0"),
}


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """What tells a process its place in a job of several."""
    for option, (metavar, help) in JOB.items():
        parser.add_argument(f"--{option}", metavar=metavar, help=f"{help} (mesh.{option})")


def job_values(args: argparse.Namespace) -> list[str]:
    """Keys that the options of a job of several processes stand for."""
    given = {option: getattr(args, option, None) for option in JOB}
    return [f"mesh.{option}={value}" for option, value in given.items() if value is not None]


def _found(name: str) -> Callable[..., JSONObject]:
    """What a "module:function" names; its module is imported now."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


SHORT = {
    "--model": ("model.name", "NAME", "language model: short name, directory, .gguf file or hub id"),
    "--data": ("data.path", "FILE", "rows: .jsonl, .parquet, .csv, a saved folder, hf:NAME"),
    "--rewards": ("rewards", "RUN", "reward run (chorus rewards fit)"),
    "--reward": (
        "columns",
        "FILE.py:FUNCTION",
        "reward function with TRL's signature; several times for several",
    ),
    "--output-dir": ("output_dir", "DIR", "run directory (default: runs/ and what is run)"),
}
_NEITHER = ("--rewards", "--reward")
_WITHOUT = {"sft": _NEITHER, "dpo": ("--reward",), "rewards": _NEITHER, "reward": _NEITHER}


def add_short(parser: argparse.ArgumentParser, kind: str) -> None:
    """Options that stand for keys."""
    for option, (key, metavar, help) in SHORT.items():
        if option not in _WITHOUT.get(kind, ()):
            action = "append" if option == "--reward" else "store"
            parser.add_argument(option, metavar=metavar, action=action, help=f"{help} ({key})")


def short_values(args: argparse.Namespace) -> dict[str, object]:
    """Dotted key → what its option says; None where it is not given."""
    values: dict[str, object] = {
        key: getattr(args, option[2:].replace("-", "_"), None) for option, (key, _, _) in SHORT.items()
    }
    if values["columns"]:
        named = [str(function) for function in args.reward]
        values["columns"] = [
            {"name": function.rpartition(":")[2], "kind": "function", "function": function}
            for function in named
        ]
    return values


def configuration(args: argparse.Namespace, kind: str) -> Any:
    """The configuration that a command line asks for, with a file or without."""
    from rlhf.apps.defaults import resolved
    from rlhf.run import guard
    from rlhf.run.config.describe import schema_of
    from rlhf.run.config.document import dump
    from rlhf.run.config.load import load

    if args.config is not None and "=" in args.config and not os.path.exists(args.config):
        args.config, args.overrides = None, [args.config, *args.overrides]  # no file: the word is a key
    given = short_values(args)
    if args.config is not None:
        words = [f"{key}={dump(value, flow=True)}" for key, value in given.items() if value is not None]
        return load(args.config, [*words, *args.overrides], schema_of(kind))
    config, values = resolved(kind, given, args.overrides)
    chosen = {name: value for name, value in values.items() if name not in ("data", "model", "mesh")}
    if not guard.watched():  # else the parent has said it
        logging.getLogger("chorus").info(
            f"without a file: {dump(chosen, flow=True)}; chorus config new {kind} writes it"
        )
    return config


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
