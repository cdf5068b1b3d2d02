"""chorus launch local|slurm, chorus launch status|logs|cancel."""

import argparse

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_group


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(
        subparsers, "launch", "run any command as a job; a preempted one is requeued and resumes"
    )
    local = add_command(
        group,
        "local",
        "in the background of this machine",
        "chorus launch local --name first -- train dpo configs/electricity/dpo.yaml",
        _launch,
        _show,
    )
    slurm = add_command(
        group,
        "slurm",
        "as a job of SLURM",
        "chorus launch slurm --devices 1 --time 4:00:00 -- train grpo configs/electricity/grpo.yaml",
        _launch,
        _show,
    )
    local.set_defaults(
        engine="local", cpus=None, devices=None, memory=None, time=None, partition=None, option=[], notice=120
    )
    slurm.set_defaults(engine="slurm")
    slurm.add_argument("--cpus", type=_count, help="processor cores")
    slurm.add_argument("--devices", type=_count, help="GPUs")
    slurm.add_argument("--memory", metavar="SIZE", help="such as 16G")
    slurm.add_argument(
        "--time", metavar="H:MM:SS", help="limit; the run is asked to stop --notice seconds before"
    )
    slurm.add_argument("--partition")
    slurm.add_argument(
        "--notice", type=_count, default=120, help="seconds for the last checkpoint (default 120)"
    )
    slurm.add_argument(
        "--option", action="append", default=[], metavar="TEXT", help="more of #SBATCH; repeatable"
    )
    for parser in (local, slurm):
        parser.add_argument("--name", help="folder in launches/ (default: time and command)")
        parser.add_argument(
            "--setup", action="append", default=[], metavar="LINE", help="shell line before; repeatable"
        )
        parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
        parser.add_argument(
            "words", nargs="+", metavar="COMMAND", help="the command behind --, as it is typed"
        )
    for name, help, example in (
        ("status", "what became of a job", "chorus launch status first"),
        ("logs", "what it said; --follow until it ends", "chorus launch logs first --follow"),
        ("cancel", "end it, with a checkpoint", "chorus launch cancel first"),
    ):
        parser = add_command(group, name, help, example, _ask, _show_state)
        parser.add_argument("name", metavar="NAME")
        parser.set_defaults(asked=name, follow=False)
        if name == "logs":
            parser.add_argument("--follow", action="store_true", help="go on until the job ends")


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _launch(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.cli import parse
    from rlhf.launch.jobs import launch
    from rlhf.launch.scripts import Resources

    words = args.words[1:] if args.words[0] == "chorus" else args.words
    if not words:
        raise UserError(
            "launch: no command; write it behind --, for example -- train dpo configs/electricity/dpo.yaml"
        )
    if words[:1] == ["launch"]:
        raise UserError("launch: a launch cannot be launched; give the command itself behind --")
    parse(words)  # what is wrong with the command is said here and not by the job
    resources = Resources(
        cpus=args.cpus,
        devices=args.devices,
        memory=args.memory,
        time=args.time,
        partition=args.partition,
        setup=tuple(args.setup),
        options=tuple(args.option),
        notice=args.notice,
    )
    return launch(args.engine, words, resources, name=args.name, dry_run=args.dry_run)


def _show(result: JSONObject) -> None:
    if "job" not in result:
        print(result["script"], end="")
        return
    print(f"{result['name']}: {result['engine']} job {result['job']}")
    print(f"chorus launch logs {result['name']} --follow")


def _ask(args: argparse.Namespace) -> JSONObject:
    from rlhf.launch import jobs

    if args.asked == "cancel":
        return {"name": args.name, "status": jobs.cancel(args.name)}
    if args.asked == "logs":
        jobs.follow(args.name, wait=args.follow)
    return {"name": args.name, "status": jobs.status(args.name)}


def _show_state(result: JSONObject) -> None:
    print(f"{result['name']}: {result['status']}")
