"""chorus rewards fit|train|evaluate|score|rails."""

import argparse

from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_group, add_job, show_values
from rlhf.apps.cli.export import parse_coefficients


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(subparsers, "rewards", "fit and test a basis of rewards with people's coefficients")
    add_job(
        group,
        "fit",
        "fit basis, population and people from preferences",
        "chorus rewards fit configs/electricity/rewards.yaml fit.num_basis=4",
        kind="rewards",
        job="rlhf.phi.fit:fit",
        options=True,
    )
    add_job(
        group,
        "train",
        "fine-tune a language model as reward model, for everybody or with directions of taste",
        "chorus rewards train --model smollm2-135m --data pairs.jsonl",
        kind="reward",
        job="rlhf.train.reward.trainer:run",
        options=True,
    )
    add_job(
        group,
        "evaluate",
        "replay held-out people's answers and compare reward models, with controls that can say no",
        "chorus rewards evaluate configs/electricity/rewards.yaml evaluation.models=all",
        kind="rewards",
        job="rlhf.phi.evaluate:evaluate_rewards",
        show=_show_evaluation,
    )
    _add_score(group)
    _add_rails(group)


def _show_evaluation(result: JSONObject) -> None:
    """The replay's figures, then the table of models and its sentence; metrics.json holds everything."""
    from rlhf.report import comparison_table, console_table, rewards_verdict

    evaluation = result["evaluation"]
    tables = {"comparison", "leak", "settings", "person_accuracy", "differs"}
    show_values({name: value for name, value in evaluation.items() if name not in tables})
    board = evaluation.get("comparison")
    if board:
        head, rows = comparison_table(board)
        once = ", each held out once" if board.get("folds", 1) > 1 else " never seen"
        console_table(f"{board['people']} people{once}", head, rows)
    if evaluation.get("differs"):
        print(evaluation["differs"])
    print(rewards_verdict(result).text)


def _add_score(group: Subparsers) -> None:
    parser = add_command(
        group,
        "score",
        "vector and scalar rewards of any completions, for the aggregate person or anybody",
        "chorus rewards score --rewards runs/electricity/rewards --input answers.jsonl --output scored.jsonl",
        run_score,
        show_values,
    )
    parser.add_argument("--rewards", metavar="RUN", required=True, help="reward run (chorus rewards fit)")
    parser.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        help="rows of prompt and completion, or of prompt, chosen and rejected; - for standard input",
    )
    parser.add_argument(
        "--output", metavar="FILE", required=True, help="JSON lines to write (.jsonl or .jsonl.gz)"
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--user", metavar="NAME", help="person whose reward it is (default: the aggregate person)"
    )
    who.add_argument("--coefficients", metavar="W1,W2,...", help="coefficients instead of a person")


def _add_rails(group: Subparsers) -> None:
    parser = add_command(
        group,
        "rails",
        "what may be personal: show, set or switch off the rails of a reward run",
        "chorus rewards rails --rewards runs/electricity/rewards --set rails.yaml",
        run_rails,
        show_values,
    )
    parser.add_argument("--rewards", metavar="RUN", required=True, help="reward run (chorus rewards fit)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--set", metavar="FILE", help="YAML of axes, half_spaces, trust_nats (docs/guardrails.md)"
    )
    what.add_argument("--off", metavar="REASON", help="switch them off; the reason is kept")
    parser.add_argument("--reason", metavar="TEXT", help="with --set: why, for the history")


def run_rails(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps import rails

    if args.off is not None:
        return rails.off(args.rewards, args.off)
    if args.set is not None:
        return rails.put(args.rewards, args.set, args.reason)
    return rails.show(args.rewards)


def run_score(args: argparse.Namespace) -> JSONObject:
    coefficients = parse_coefficients(args.coefficients)
    from rlhf.phi.score import score

    return score(args.rewards, args.input, args.output, user=args.user, coefficients=coefficients)
