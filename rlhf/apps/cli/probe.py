"""chorus probe."""

import argparse

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_seed


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "probe",
        "biases, flattery, pressure, profiles and opinions of a policy, for each kind of person; report.html",
        "chorus probe runs/electricity/policy --data probe_sets --output runs/probes",
        run,
        show,
    )
    parser.add_argument(
        "policy", metavar="POLICY", help="policy run, or a model by name, directory or hub id"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        required=True,
        help="folder of probe sets (docs/guardrails.md says which); what is not there is skipped",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where report.html and probes.json go (default: nowhere)"
    )
    parser.add_argument("--items", type=int, default=8, metavar="N", help="items of each kind (default 8)")
    parser.add_argument(
        "--people",
        type=int,
        default=2,
        metavar="N",
        help="sparse, median and extreme people, N each (default 2)",
    )
    parser.add_argument("--only", metavar="NAME,NAME", help="these probes (default: all)")
    add_seed(parser, "seed of which items and people are asked")


def run(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.probe import probe
    from rlhf.evaluation.probes.suite import NAMES

    for option, value in (("--items", args.items), ("--people", args.people)):
        if value < 1:
            raise UserError(f"{option} {value}: must be at least 1")
    only = NAMES if args.only is None else tuple(name.strip() for name in args.only.split(","))
    return probe(
        args.policy,
        args.data,
        output=args.output,
        count=args.items,
        people=args.people,
        seed=args.seed,
        only=only,
    )


def show(result: JSONObject) -> None:
    from rlhf.report.console import console_table
    from rlhf.report.probes import table

    head, rows = table(result)
    console_table(f"probes of {result['policy']}", head, rows)
    for one in result["skipped"]:
        print(f"skipped {one['probe']}: {one['reason']}")
    for alarm in result["alarms"]:
        print(f"alarm: {alarm}")
    if "report" in result:
        print(f"report: {result['report']}")
