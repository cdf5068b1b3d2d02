"""chorus users ask|update|show|list|forget."""

import argparse
from typing import Any

from rlhf.cli.common import add_command, add_group


def add_parser(subparsers: Any) -> None:
    group = add_group(subparsers, "users", "what a reward run knows about a person")
    ask = add_command(
        group,
        "ask",
        "ask a person which of two answers they like better, the most informative pair first",
        "chorus users ask ada --rewards runs/rewards",
        run_ask,
        show_user,
    )
    _add_person(ask)
    ask.add_argument(
        "--answers", metavar="FILE", help="take answers from a preference file instead of the terminal"
    )
    ask.add_argument(
        "--max-questions", type=int, default=10, metavar="N", help="stop after N questions (default 10)"
    )
    update = add_command(
        group,
        "update",
        "learn from all rows of a preference file",
        "chorus users update ada --rewards runs/rewards --answers ada.jsonl",
        run_update,
        show_user,
    )
    _add_person(update)
    update.add_argument(
        "--answers", metavar="FILE", required=True, help="preference file; its user_id must be NAME"
    )
    show = add_command(
        group,
        "show",
        "coefficients of a person, with uncertainty",
        "chorus users show ada --rewards runs/rewards",
        run_show,
        show_user,
    )
    _add_person(show)
    everybody = add_command(
        group,
        "list",
        "people of a reward run",
        "chorus users list --rewards runs/rewards",
        run_list,
        show_list,
    )
    _add_rewards(everybody)
    forget = add_command(
        group,
        "forget",
        "erase a person's record",
        "chorus users forget ada --rewards runs/rewards",
        run_forget,
        lambda result: print(f"{result['user_id']}: erased"),
    )
    _add_person(forget)


def _add_rewards(parser: Any) -> None:
    parser.add_argument("--rewards", metavar="RUN", required=True, help="reward run (chorus rewards fit)")


def _add_person(parser: Any) -> None:
    parser.add_argument("name", metavar="NAME", help="id of the person")
    _add_rewards(parser)


def run_ask(args: argparse.Namespace) -> dict[str, Any]:
    from rlhf.cli.generate import check_range
    from rlhf.jobs import users

    check_range("--max-questions", args.max_questions, 1, None)
    if args.answers is not None:
        return users.ask_file(args.rewards, args.name, args.answers, args.max_questions)
    return users.ask_terminal(args.rewards, args.name, args.max_questions)


def run_update(args: argparse.Namespace) -> dict[str, Any]:
    from rlhf.jobs import users

    return users.update(args.rewards, args.name, args.answers)


def run_show(args: argparse.Namespace) -> dict[str, Any]:
    from rlhf.jobs import users

    return users.show(args.rewards, args.name)


def run_list(args: argparse.Namespace) -> dict[str, Any]:
    from rlhf.jobs import users

    return users.everybody(args.rewards)


def run_forget(args: argparse.Namespace) -> dict[str, Any]:
    from rlhf.jobs import users

    return users.forget(args.rewards, args.name)


def show_user(result: dict[str, Any]) -> None:
    """The table of axes: mean and standard deviation beside those of the population."""
    print(f"{result['user_id']}: {result['num_answers']} answers, basis {result['basis'][:12]}")
    width = max(len(axis["name"]) for axis in result["axes"])
    for axis in result["axes"]:
        print(
            f"  {axis['name']:<{width}}  {axis['mean']:+.2f} ± {axis['sd']:.2f}"
            f"   (population {axis['prior_mean']:+.2f} ± {axis['prior_sd']:.2f})"
        )


def show_list(result: dict[str, Any]) -> None:
    for user in result["users"]:
        print(f"{user['user_id']}  {user['num_answers']} answers")
