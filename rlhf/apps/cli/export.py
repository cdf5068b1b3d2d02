"""chorus export."""

import argparse

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, check_range, show_path


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "export",
        "write a policy as a Hugging Face directory: the aggregate policy, or one person's, merged",
        "chorus export --policy runs/electricity/policy --user e001 --output exported",
        run,
        show_path,
    )
    parser.add_argument("--policy", metavar="RUN", required=True, help="policy run (chorus train)")
    parser.add_argument("--output", metavar="DIR", required=True, help="directory to create")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--user", metavar="NAME", help="person whose policy is merged (default: the aggregate policy)"
    )
    who.add_argument("--coefficients", metavar="W1,W2,...", help="coefficients whose policy is merged")


def run(args: argparse.Namespace) -> JSONObject:
    coefficients = parse_coefficients(args.coefficients)
    from rlhf.apps.export import export

    return export(args.policy, args.output, user=args.user, coefficients=coefficients)


def parse_coefficients(text: str | None) -> tuple[float, ...] | None:
    """`1.5,-2,0` → numbers."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--coefficients {text!r}: write numbers with commas between, for example 1.5,-2,0"
        ) from None
    for number in numbers:
        check_range("--coefficients", number, -1e6, 1e6)
    return numbers
