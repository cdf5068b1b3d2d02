"""The process `chorus`, made to say where it is when it hangs; `quickstart` with the folder's tiny model and data.

    python scripts/faults/process.py WORDS…

SIGUSR1 prints the stacks of all threads on stderr. Nothing else differs from `python -m rlhf WORDS…`.
"""

from rlhf.__main__ import start  # first: from here on Ctrl-C is no traceback

# isort: split
import argparse
import faulthandler
import importlib
import signal
from typing import Any

TINY = {
    "rewards": (
        *("data.path=inputs/pairs.jsonl", "model.name=inputs/model", "encoder.layer=1"),
        *("fit.num_basis=[2]", "fit.dims=[4]", "fit.rounds=4", "evaluation.seeds=2"),
    ),
    "sft": (
        *(
            "data.path=inputs/pairs.jsonl",
            "model.name=inputs/model",
            "model.adapter_layers=1",
            "tune.lora_rank=2",
        ),
        *("train.steps=4", "train.row_length=64", "train.checkpoint_every=2", "train.log_every=1"),
    ),
    "dpo": (
        *("data.path=inputs/pairs.jsonl", "model.adapter_layers=1", "tune.lora_rank=2", "conditioner.rank=2"),
        *("train.steps=4", "train.checkpoint_every=2", "train.log_every=1", "optimizer.warmup_steps=1"),
    ),
    "evaluate": ("data.path=inputs/pairs.jsonl", "sampling.max_new_tokens=6", "users.answers=5"),
}


def tiny_quickstart(args: argparse.Namespace) -> object:
    """All stages of the quickstart on inputs/: seconds instead of minutes."""
    job: Any = importlib.import_module("rlhf.apps.quickstart")
    whole = job._config
    job.fetch.fetch = lambda name: "inputs/model"
    job.stated_choice.fetch = lambda name: "inputs/pairs.jsonl"
    job._config = lambda name, schema, root, seed, more: whole(name, schema, root, seed, [*TINY[name], *more])
    return job.run(args.output_dir, seed=args.seed)


def prepare() -> None:
    """Before `start`."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    group: Any = importlib.import_module("rlhf.apps.cli.quickstart")
    group.run = tiny_quickstart


if __name__ == "__main__":
    prepare()
    start()
