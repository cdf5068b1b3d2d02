"""chorus evaluate."""

import argparse

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_job_options, job_values, show_values

_EXAMPLE = """chorus evaluate configs/electricity/evaluate.yaml policy=runs/electricity/policy
  chorus evaluate --policies runs/electricity/policy reference --rewards runs/electricity/rewards --people 5"""
OPTIONS = {
    "policies": "policies",
    "people": "people",
    "prompts": "prompts",
    "rewards": "rewards",
    "judge": "judges",
    "samples": "sampling.num_samples",
    "max_new_tokens": "sampling.max_new_tokens",
    "output_dir": "output_dir",
}
"""Option → the key for which it stands."""


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        "does each person get answers that suit them, and which of several policies writes better ones: report.html",
        _EXAMPLE,
        run,
        show,
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="YAML file; keys: chorus config describe outputs, and evaluate for one policy on answers that can be listed",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="override a key, e.g. sampling.num_samples=4",
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        metavar="POLICY",
        help="[NAME=]SOURCE each: a run, a model's directory or name, reference, or http://HOST/v1#MODEL; RUN@STEP is a "
        "checkpoint, RUN@aggregate its policy for everybody; @in-context and @best-of-N go with all",
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="prompts, one a line or JSON lines (default: the data's)"
    )
    parser.add_argument("--rewards", metavar="RUN", help="reward run: whose people they are, and their judge")
    parser.add_argument(
        "--people",
        nargs="+",
        metavar="WHO",
        help="a number of held-out people, or held-out, population, sparse, median, extreme, names",
    )
    parser.add_argument(
        "--judge",
        action="append",
        metavar="FILE.py:FUNCTION",
        help="reward function with TRL's signature as a further judge; may be given several times",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="completions of each prompt and person")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest completion")
    parser.add_argument(
        "--output-dir", metavar="DIR", help="run directory (default: runs/evaluate and the policies)"
    )
    add_job_options(parser)


def run(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.evaluate import evaluate

    return evaluate(*asked(args))


def asked(args: argparse.Namespace) -> tuple[str | None, JSONObject, list[str]]:
    """File, keys that options stand for, and overrides: the arguments of `rlhf.apps.evaluate`."""
    given = {
        key: getattr(args, option) for option, key in OPTIONS.items() if getattr(args, option) is not None
    }
    if args.config is None and not given:
        raise UserError(
            "evaluate: give CONFIG, a YAML file, or --policies with --rewards or --prompts (chorus evaluate --help)"
        )
    return args.config, given, [*job_values(args), *args.overrides]


def show(result: JSONObject) -> None:
    if "comparisons" not in result:
        show_values(result)
        return
    from rlhf.report.console import console_table

    print(result["verdict"]["text"])
    rows = [
        [
            " against ".join(one["policies"]),
            one["judge"],
            f"{one['win_rate']['mean']:.1%}",
            "never seen" if one["length_controlled"] is None else f"{one['length_controlled']:.1%}",
            one["outcome"],
        ]
        for one in result["comparisons"]
    ]
    if rows:
        console_table(
            "Comparisons", ["policies", "judge", "win rate", "at equal length", "the first is"], rows
        )
    print(f"{result['run_dir']}/report.html")
