"""chorus launch local|slurm|ray|skypilot|kubernetes, chorus launch status|logs|cancel|requeue."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.apps.cli.common import Subparsers, add_command, add_group

_ENGINES = {
    "local": ("in the background of this machine", "--name first -- train dpo configs/electricity/dpo.yaml"),
    "slurm": (
        "as a job of SLURM",
        "--devices 1 --time 4:00:00 -- train grpo configs/electricity/grpo.yaml",
    ),
    "ray": (
        "as a job of a Ray cluster",
        "--address http://127.0.0.1:8265 -- train dpo configs/electricity/dpo.yaml",
    ),
    "skypilot": (
        "as a managed job of SkyPilot, on any cloud",
        "--accelerator H100 --spot --mount /out=s3://bucket --setup 'pip install chorus-rlhf' "
        "-- train grpo configs/electricity/grpo.yaml output_dir=/out/grpo",
    ),
    "kubernetes": (
        "as a JobSet of Kubernetes, queued by Kueue",
        "--image chorus:1 --queue research --volume runs:/work --devices 1 "
        "-- train grpo configs/electricity/grpo.yaml",
    ),
}
# option: (metavar, help, engines); those in _MANY may be repeated
_OPTIONS = {
    "tasks": (None, "processes of a training, or a sweep and its further workers (default 1)", "slurm"),
    "cpus": (None, "processor cores of a task", "slurm ray skypilot kubernetes"),
    "devices": (None, "GPUs, or chips of a TPU", "slurm ray skypilot kubernetes"),
    "memory": ("SIZE", "such as 16G", "slurm ray skypilot kubernetes"),
    "time": ("H:MM:SS", "limit; SLURM asks the run to stop --notice seconds before", "slurm kubernetes"),
    "partition": (None, "partition of SLURM", "slurm"),
    "notice": (None, "seconds for the last checkpoint (default 120)", "slurm ray kubernetes"),
    "option": ("TEXT", "more of #SBATCH", "slurm"),
    "address": ("URL", "Ray's dashboard (default: RAY_ADDRESS, or port 8265 of this machine)", "ray"),
    "accelerator": ("KIND", "kind of the devices, such as H100 or tpu-v5e", "skypilot"),
    "infra": ("CLOUD/REGION", "where; SkyPilot chooses otherwise", "skypilot"),
    "mount": ("PATH=URL", "a bucket as a folder, such as /out=s3://bucket", "skypilot"),
    "image": (None, "container image", "skypilot kubernetes"),
    "queue": (None, "local queue of Kueue", "kubernetes"),
    "priority": (None, "priority class of Kueue", "kubernetes"),
    "namespace": (None, "namespace of Kubernetes", "kubernetes"),
    "node": ("KEY=VALUE", "label that the node has", "kubernetes"),
    "tpu": ("TYPE:TOPOLOGY", "TPU node pool, such as tpu-v5-lite-podslice:2x4", "kubernetes"),
    "volume": ("CLAIM:PATH", "persistent volume claim as a folder", "kubernetes"),
    "secret": ("NAME", "secret whose keys become environment variables", "kubernetes"),
    "folder": (
        "PATH",
        "where the command runs there (default: here; kubernetes: the first volume)",
        "ray kubernetes",
    ),
    "python": ("PATH", "Python that has chorus there", "ray skypilot kubernetes"),
}
_HERE = ("local", "slurm")
"""Engines that run the command in this folder, on this machine's files."""
_MANY = ("option", "mount", "node", "volume", "secret")


def add_parser(subparsers: Subparsers) -> None:
    group = add_group(
        subparsers, "launch", "run any command as a job; a preempted one is requeued and resumes"
    )
    for engine, (help, example) in _ENGINES.items():
        parser = add_command(group, engine, help, f"chorus launch {engine} {example}", _launch, _show)
        parser.set_defaults(engine=engine)
        for name, (metavar, text, engines) in _OPTIONS.items():
            if engine not in engines.split():
                continue
            if name in _MANY:
                parser.add_argument(
                    f"--{name}", action="append", default=[], metavar=metavar, help=f"{text}; repeatable"
                )
            elif name in ("tasks", "cpus", "devices", "notice"):
                parser.add_argument(f"--{name}", type=_count, help=text)
            else:
                parser.add_argument(f"--{name}", metavar=metavar, help=text)
        if engine == "skypilot":
            parser.add_argument("--spot", action="store_true", help="cheaper machines that may be taken away")
        parser.add_argument("--name", help="folder in launches/ (default: time and command)")
        parser.add_argument(
            "--setup", action="append", default=[], metavar="LINE", help="shell line before; repeatable"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="print what would be submitted, and submit nothing"
        )
        parser.add_argument(
            "words", nargs="+", metavar="COMMAND", help="the command behind --, as it is typed"
        )
    for name, help, example in (
        ("status", "what became of a job", "chorus launch status first"),
        ("logs", "what it said; --follow until it ends", "chorus launch logs first --follow"),
        ("cancel", "end it, with a checkpoint", "chorus launch cancel first"),
        (
            "requeue",
            "submit an ended one again; it goes on from its checkpoint",
            "chorus launch requeue first",
        ),
    ):
        parser = add_command(group, name, help, example, _ask, _show_state)
        parser.add_argument("name", metavar="NAME")
        parser.set_defaults(asked=name, follow=False)
        if name == "logs":
            parser.add_argument("--follow", action="store_true", help="go on until the job ends")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10) or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 100000")
    return int(text)


def _launch(args: argparse.Namespace) -> JSONObject:
    from rlhf.apps.cli import parse
    from rlhf.launch.jobs import launch
    from rlhf.launch.resources import Resources

    words = args.words[1:] if args.words[0] == "chorus" else args.words
    if not words:
        raise UserError(
            "launch: no command; write it behind --, for example -- train dpo configs/electricity/dpo.yaml"
        )
    if words[:1] == ["launch"]:
        raise UserError("launch: a launch cannot be launched; give the command itself behind --")
    parsed = parse(words)  # what is wrong with the command is said here and not by the job
    if (getattr(args, "tasks", None) or 1) > 1 and not (parsed.meshed or parsed.command == "sweep"):
        raise UserError(
            f"--tasks {args.tasks}: `{parsed.parser.prog}` runs in one process; leave --tasks out, or launch a training "
            "or a sweep"
        )
    if args.engine in _HERE:
        _check_configuration(parsed, getattr(args, "tasks", None))
    given: dict[str, Any] = vars(args) | {"options": getattr(args, "option", [])}
    named = {field.name: given.get(field.name) for field in dataclasses.fields(Resources)}
    resources = Resources(**{name: value for name, value in named.items() if value is not None})
    return launch(args.engine, words, resources, name=args.name, dry_run=args.dry_run)


def _check_configuration(command: argparse.Namespace, tasks: int | None) -> None:
    """Read what the command will read, where that is here already."""
    read, path = getattr(command, "read", None), getattr(command, "config", None)
    if read is None or path is None or not Path(path).is_file():
        return
    config = read(command)
    mesh = getattr(config, "mesh", None)
    processes = None if mesh is None else mesh.processes
    if processes not in (None, tasks or 1):
        raise UserError(
            f"mesh.processes {processes}: the job has {tasks or 1} (--tasks); remove the key, or give --tasks {processes}"
        )


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
    if args.asked == "requeue":
        return {"name": args.name, "status": jobs.requeue(args.name)}
    if args.asked == "logs":
        jobs.follow(args.name, wait=args.follow)
    return {"name": args.name, "status": jobs.status(args.name)}


def _show_state(result: JSONObject) -> None:
    print(f"{result['name']}: {result['status']}")
