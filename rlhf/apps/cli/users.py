"""chorus users ask|update|edit|show|card|list|forget."""

import argparse
import json

from rewards import jsonl
from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_group, check_range


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "users", "what a reward run knows about a person")
    ask = add_command(
        group,
        "ask",
        "ask a person which of two answers they like better, the most informative pair first",
        "chorus users ask ada --rewards runs/rewards",
        run_ask,
        show_asked,
    )
    _add_person(ask)
    ask.add_argument(
        "--answers", metavar="FILE", help="take answers from a preference file instead of the terminal"
    )
    ask.add_argument(
        "--max-questions", type=int, default=10, metavar="N", help="stop after N questions (default 10)"
    )
    ask.add_argument(
        "--rule",
        metavar="NAME",
        default="information",
        help="how questions are chosen: information (default), d-optimal, pref or random",
    )
    ask.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="write N questions at once, to be filled in and given to `update`",
    )
    ask.add_argument("--output", metavar="FILE", help="with --batch: the file to write (default: print)")
    ask.add_argument(
        "--stop-below",
        type=float,
        metavar="GAIN",
        help="stop when the next answer is predicted to add less accuracy than this, e.g. 0.002",
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
        "--answers",
        metavar="FILE",
        required=True,
        help="preference file or filled-in questionnaire; its user_id must be NAME",
    )
    edit = add_command(
        group,
        "edit",
        "say what a person likes, as numbers or in words",
        'chorus users edit ada --rewards runs/rewards --axis "taste 1=+1.5"\n'
        '  chorus users edit ada --rewards runs/rewards --text "shorter, cheaper, please"',
        run_edit,
        show_user,
    )
    _add_person(edit)
    edit.add_argument(
        "--axis", metavar="NAME=NUMBER", action="append", default=[], help="a coefficient; may be repeated"
    )
    edit.add_argument(
        "--text", metavar="WORDS", help="in words: more or less of an axis, column or attribute"
    )
    show = add_command(
        group,
        "show",
        "coefficients of a person, with uncertainty",
        "chorus users show ada --rewards runs/rewards",
        run_show,
        show_person,
    )
    _add_person(show)
    show.add_argument(
        "--policy", metavar="RUN", help="training run with these rewards: also show its z for this person"
    )
    card = add_command(
        group,
        "card",
        "what is held about a person, and the answers that each number comes from",
        "chorus users card ada --rewards runs/rewards --output ada.json",
        run_card,
        show_card,
    )
    _add_person(card)
    card.add_argument("--output", metavar="FILE", help="export everything that is held, as JSON")
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


def _add_rewards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rewards", metavar="RUN", required=True, help="reward run (chorus rewards fit)")


def _add_person(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="id of the person")
    _add_rewards(parser)


def run_ask(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    check_range("--max-questions", args.max_questions, 1, 1_000_000)
    if args.stop_below is not None:
        check_range("--stop-below", args.stop_below, 0, 1)
    asking = users.Asking(args.rule, args.stop_below)
    if args.batch is not None:
        check_range("--batch", args.batch, 1, 1_000_000)
        for option, value in (("--answers", args.answers), ("--stop-below", args.stop_below)):
            if value is not None:
                raise UserError(
                    f"--batch and {option}: a batch is chosen before anything is answered; give one of them"
                )
        return users.ask_batch(args.rewards, args.name, args.batch, args.output, asking)
    if args.output is not None:
        raise UserError("--output: only with --batch; answers are stored in the reward run")
    if args.answers is not None:
        return users.ask_file(args.rewards, args.name, args.answers, args.max_questions, asking)
    return users.ask_terminal(args.rewards, args.name, args.max_questions, asking)


def run_update(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    return users.update(args.rewards, args.name, args.answers)


def run_edit(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    if not args.axis and args.text is None:
        raise UserError("users edit: give --axis NAME=NUMBER or --text WORDS")
    return users.edit(args.rewards, args.name, args.axis, args.text)


def run_show(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    return users.show(args.rewards, args.name, args.policy)


def run_card(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    return users.card(args.rewards, args.name, args.output)


def run_list(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    return users.everybody(args.rewards)


def run_forget(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import users

    return users.forget(args.rewards, args.name)


def show_asked(result: JSONObject) -> None:
    """The person, or the questionnaire: where it is, or its lines."""
    if "questions" not in result:
        show_user(result)
    elif result["output"] is not None:
        print(result["output"])
    else:
        for row in result["questions"]:
            print(jsonl.line(row), end="")


def show_person(result: JSONObject) -> None:
    """The person, and whether they seem to be two."""
    show_user(result)
    if "z" in result:
        parts = ", ".join(
            f"{axis['name']} {z:+.2f}" for axis, z in zip(result["axes"], result["z"], strict=True)
        )
        print(f"  z under {result['policy']}: {parts}")
    shared = result["shared_account"]
    if shared is not None and shared["flagged"]:
        print(
            f"  Two people may share this account (p = {shared['p_value']:.2f}; single people are flagged "
            f"{shared['false_alarm_rate']:.0%} of the time): one gives {shared['share']:.0%} of the answers."
        )


def show_user(result: JSONObject) -> None:
    """The table of axes: mean and standard deviation beside those of the population."""
    edited = f", {result['num_edits']} edits" if result["num_edits"] else ""
    print(f"{result['user_id']}: {result['num_answers']} answers{edited}, basis {result['basis'][:12]}")
    width = max(len(axis["name"]) for axis in result["axes"])
    for axis in result["axes"]:
        print(
            f"  {axis['name']:<{width}}  {axis['mean']:+.2f} ± {axis['sd']:.2f}"
            f"   (population {axis['prior_mean']:+.2f} ± {axis['prior_sd']:.2f})"
            + (f"   {axis['rail']}" if axis["rail"] != "free" else "")
            + (f"   {axis['meaning']}" if axis["meaning"] else "")
        )
    for said in result["rails"]:
        print(f"  rails: {said}")


def show_card(result: JSONObject) -> None:
    """Axis by axis: what is used of it, its interval and rail, and what moved it most."""
    edited = f" and {result['num_edits']} statements" if result["num_edits"] else ""
    print(
        f"{result['user_id']}: {result['num_answers']} answers{edited}; record {result['provenance']['record'][:12]}"
    )
    for axis in result["axes"]:
        low, high = axis["mean"] - 2 * axis["sd"], axis["mean"] + 2 * axis["sd"]
        meaning = f" ({axis['meaning']})" if axis["meaning"] else ""
        print(f"{axis['name']}{meaning}: {axis['rail']}, used {axis['used']:+.2f}")
        if not axis["rail"].startswith("locked"):
            print(
                f"  estimated {axis['mean']:+.2f}, {low:+.2f} to {high:+.2f}; the average {axis['prior_mean']:+.2f}"
            )
        for one in axis["because"]:
            print(f"  {one['moves']:+.2f} {_because(one)}")
    for said in result["rails"]:
        print(f"rails: {said}")
    place = f"--rewards RUN; chorus users forget {result['user_id']} --rewards RUN"
    print(f"change or erase: chorus users edit {result['user_id']} {place}")
    if result["output"] is not None:
        print(f"exported: {result['output']}")


def _because(one: JSONObject) -> str:
    if one["kind"] == "statement":
        return f"said: {_brief(one['text'])}"
    if one["tie"]:
        return f"answer {one['number']}: {_brief(one['preferred'])} as good as {_brief(one['other'])}"
    return f"answer {one['number']}: {_brief(one['preferred'])} rather than {_brief(one['other'])}"


def _brief(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return json.dumps(line if len(line) <= most else line[: most - 1] + "…", ensure_ascii=False)


def show_list(result: JSONObject) -> None:
    for user in result["users"]:
        print(f"{user['user_id']}  {user['num_answers']} answers")
