"""chorus sweep."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command

_SHOWN = 10


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "sweep",
        "try hyperparameters of a fit or training, many at a time; the same command again resumes",
        "chorus sweep configs/electricity/sweep_rewards.yaml sweep.trials=12 sweep.workers=2",
        _run,
        _show,
    )
    parser.set_defaults(read=_read)
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="YAML file of the run with a section `sweep`; keys: chorus config describe sweep",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="override a key of the run, or sweep.key of the sweep",
    )
    parser.add_argument(
        "--worker", action="store_true", help="only run trials, beside the other workers of this sweep"
    )


def _read(args: argparse.Namespace) -> object:
    from rlhf.sweep.config import read_sweep

    return read_sweep(args.config, args.overrides)


def _run(args: argparse.Namespace) -> JSONObject:
    from rlhf.sweep.job import run

    return run(args.config, args.overrides, worker=args.worker)


def _show(result: JSONObject) -> None:
    if "trials" not in result:  # a worker
        return
    from rewards import jsonl
    from rlhf.report import console_table, sweep_table, sweep_verdict
    from rlhf.sweep.results import TABLE

    rows = jsonl.rows(f"{result['run_dir']}/{TABLE}")
    head, cells = sweep_table(result, rows)
    console_table(f"best {min(_SHOWN, len(cells))} of {len(cells)} trials", head, cells[:_SHOWN])
    print(sweep_verdict(result, rows).text)
    if result["best"]:
        print(f"run it:  {result['best']['command']}")
    print(f"report:  {result['run_dir']}/report.html")
