"""chorus data check|audit|plan|fetch."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import (
    Subparsers,
    add_command,
    add_group,
    add_seed,
    check_range,
    show_path,
    show_values,
)

SETS = ("electricity", "train-trips")
COLUMNS = (
    ("prompt", "prompt", "the prompt"),
    ("chosen", "chosen", "the preferred completion"),
    ("rejected", "rejected", "the other completion"),
    ("user", "user_id", "the person who chose"),
)


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "data", "check or audit a preference file, plan one, or fetch a public one")
    check = add_command(
        group,
        "check",
        "validate every row, describe the data, look for leaks of the answer through formatting",
        "chorus data check preferences.jsonl",
        run_check,
        show_check,
    )
    _add_source(check)
    add_seed(check, "seed of the leak check's folds")
    audit = add_command(
        group,
        "audit",
        "how good are the answers: repeats, order, frames, cycles, people who answer at random",
        "chorus data audit preferences.jsonl",
        run_audit,
        show_audit,
    )
    _add_source(audit)
    add_seed(audit, "seed of the resampling")
    plan = add_command(
        group,
        "plan",
        "how many raters and pairs each to buy with a budget of labels",
        "chorus data plan --labels 6000",
        run_plan,
        show_plan,
    )
    plan.add_argument("--labels", type=int, required=True, help="number of labels, repeats included")
    plan.add_argument("--raters", type=int, help="number of raters, if it is given (default: the best)")
    plan.add_argument("--num-basis", type=int, default=4, help="basis outputs K of the fit (default 4)")
    plan.add_argument("--dims", type=int, default=32, help="embedding dimensions of the fit (default 32)")
    plan.add_argument(
        "--spread", type=float, default=1.0, help="spread of people's tastes, 1 as measured (default)"
    )
    fetch = add_command(
        group,
        "fetch",
        f"fetch a public data set: {' or '.join(SETS)}",
        "chorus data fetch electricity",
        run_fetch,
        show_path,
    )
    fetch.add_argument("name", metavar="NAME", choices=SETS, help=" or ".join(SETS))
    fetch.add_argument("--output", metavar="FILE", help="where to write it (default: the cache folder)")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="FILE", help=".jsonl[.gz], .parquet, - (standard input), hf:NAME, tfds:NAME"
    )
    parser.add_argument(
        "--split", default="train", help="split to read; a local file has only train (default)"
    )
    for name, ours, what in COLUMNS:
        parser.add_argument(
            f"--{name}-column",
            metavar="NAME",
            default=ours,
            help=f"column that holds {what} (default {ours})",
        )


def _columns(args: argparse.Namespace) -> dict[str, str]:
    """Our names → those given, where they differ."""
    given = {ours: getattr(args, f"{name}_column") for name, ours, _ in COLUMNS}
    return {ours: theirs for ours, theirs in given.items() if ours != theirs}


def run_audit(args: argparse.Namespace) -> JSONObject:
    from rewards.annotation.audit import audit
    from rewards.data.read import read_preferences

    return {
        "path": args.path,
        **audit(read_preferences(args.path, args.split, columns=_columns(args)), args.seed),
    }


def show_audit(result: JSONObject) -> None:
    from rewards.annotation.audit_text import table

    for line in table(result):
        print(line)
    print(result["verdict"])
    for line in result["to_do"]:
        print(f"to do: {line}")


def run_plan(args: argparse.Namespace) -> JSONObject:
    from rewards.annotation.planner import plan

    check_range("--labels", args.labels, 32, 1_000_000_000)
    check_range("--num-basis", args.num_basis, 1, 1_000)
    check_range("--dims", args.dims, 1, 1_000_000)
    check_range("--spread", args.spread, 0.01, 100)
    return plan(args.labels, num_basis=args.num_basis, dims=args.dims, spread=args.spread, raters=args.raters)


def show_plan(result: JSONObject) -> None:
    print(f"{'raters':>8} {'pairs each':>11} {'accuracy lost':>14}")
    for row in result["table"]:
        mark = "  <-" if row["raters"] == result["raters"] else ""
        print(f"{row['raters']:>8} {row['pairs_per_rater']:>11} {row['loss']:>14.3f}{mark}")
    print(
        f"{result['advice']}; {result['audit_repeats']} of the {result['labels']} labels repeat earlier questions "
        "in the other order, for the audit"
    )
    if result["law"]["extrapolated"]:
        at = result["law"]["measured_at"]
        print(
            f"note: extrapolated; measured with {at['labels']} labels, K = {at['num_basis']}, {at['dims']} dimensions"
        )


def run_check(args: argparse.Namespace) -> JSONObject:
    from rewards.data.check import describe
    from rewards.data.leak import leak_check
    from rewards.data.read import read_preferences

    prefs = read_preferences(args.path, args.split, columns=_columns(args), people=False)
    return {"path": args.path, **describe(prefs), "leak": leak_check(prefs, args.seed)}


def show_check(result: JSONObject) -> None:
    notes = result.pop("notes", [])
    leak = result.pop("leak")
    show_values(result)
    for note in notes:
        print(f"note: {note}")
    print(
        ("ALARM: " if leak.get("alarm") else "leak check: ") + str(leak.get("message", "nothing suspicious"))
    )


def run_fetch(args: argparse.Namespace) -> JSONObject:
    from rewards.data.stated_choice import fetch

    return {"path": str(fetch(args.name, args.output))}
