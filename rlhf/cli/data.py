"""chorus data check|fetch."""

import argparse
from typing import Any

from rlhf.cli.common import add_command, add_group, show_values

SETS = ("electricity", "train-trips")


def add_parser(subparsers: Any) -> None:
    group = add_group(subparsers, "data", "check a preference file, or fetch a public one")
    check = add_command(
        group,
        "check",
        "validate every row, describe the data, look for leaks of the answer through formatting",
        "chorus data check preferences.jsonl",
        run_check,
        show_check,
    )
    check.add_argument(
        "path", metavar="FILE", help=".jsonl[.gz], .parquet, hf:NAME, tfds:NAME or tfds:DIRECTORY"
    )
    check.add_argument(
        "--split", default="train", help="split to read; a local file has only train (default)"
    )
    check.add_argument(
        "--user-column", default="user_id", help="column that names the person (default user_id)"
    )
    check.add_argument("--seed", type=int, default=0, help="seed of the leak check's folds (default 0)")
    fetch = add_command(
        group,
        "fetch",
        f"fetch a public data set: {' or '.join(SETS)}",
        "chorus data fetch electricity",
        run_fetch,
        show_fetch,
    )
    fetch.add_argument("name", metavar="NAME", choices=SETS, help=" or ".join(SETS))
    fetch.add_argument("--output", metavar="FILE", help="where to write it (default: the cache folder)")


def run_check(args: argparse.Namespace) -> dict[str, Any]:
    from rewards.data.check import describe
    from rewards.data.leak import leak_check
    from rewards.data.read import read_preferences

    prefs = read_preferences(args.path, args.split, user_column=args.user_column)
    return {"path": args.path, **describe(prefs), "leak": leak_check(prefs, args.seed)}


def show_check(result: dict[str, Any]) -> None:
    notes = result.pop("notes", [])
    leak = result.pop("leak")
    show_values(result)
    for note in notes:
        print(f"note: {note}")
    print(
        ("ALARM: " if leak.get("alarm") else "leak check: ") + str(leak.get("message", "nothing suspicious"))
    )


def run_fetch(args: argparse.Namespace) -> dict[str, Any]:
    from rewards.data.stated_choice import fetch

    return {"path": str(fetch(args.name, args.output))}


def show_fetch(result: dict[str, Any]) -> None:
    print(result["path"])
