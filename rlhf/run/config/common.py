"""Sections that runs of every kind have: what identifies a run, and where its data comes from."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.run.record import record


@record
class MeshConfig:
    """How the devices of a run share the work (`rlhf.mesh`); at most one axis is −1, which takes all that are left."""

    data: int = Field(
        default=-1,
        ge=-1,
        le=1_000_000,
        description="Devices that divide the rows and each hold all weights; -1: all that the other axes leave.",
    )
    fsdp: int = Field(
        default=1,
        ge=-1,
        le=1_000_000,
        description="Devices that divide the rows and the weights, gradients and moments as well.",
    )
    tensor: int = Field(
        default=1,
        ge=-1,
        le=1_000_000,
        description="Devices that divide each matrix along its heads or hidden units; divides the model's heads.",
    )
    coordinator: str | None = Field(
        default=None,
        min_length=1,
        description="HOST:PORT of process 0, where a job has several processes; null: as the launcher says (SLURM, Open MPI, "
        "Kubernetes, Cloud TPU).",
    )
    processes: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Processes of this job; null: as the launcher says; 1: this process alone, whatever it says.",
    )
    process: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Number of this process, from 0; null: as the launcher says. Better as an option, --process.",
    )

    @model_validator(mode="after")
    def _one_free(self):
        given = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        if zero := [name for name, size in given.items() if size == 0]:
            raise ValueError(f"{zero[0]} is 0; give a number of devices, or -1 for all that are left")
        free = [name for name, size in given.items() if size < 0]
        if len(free) > 1:
            raise ValueError(f"{' and '.join(free)} are both -1; give one of them a number of devices")
        if self.processes == 1 and self.process not in (None, 0):
            raise ValueError(f"process {self.process} of processes 1; they are numbered from 0")
        if self.processes == 1 and self.coordinator is not None:
            raise ValueError(
                f"coordinator {self.coordinator.rpartition('@')[2]}: not read with processes 1; remove one"
            )
        return self

    def need_one_process(self, what: str) -> None:
        """Refuse several processes where a command is one; `what` says which.

        Raises:
          ValueError: naming the key that asks for them.
        """
        given = {"processes": self.processes, "coordinator": self.coordinator, "process": self.process}
        for name, value in given.items():
            if value is not None and (name, value) != ("processes", 1) and self.processes != 1:
                raise ValueError(
                    f"mesh.{name} {value}: {what} by one process, on all its devices; leave it out"
                )


@record
class RunConfig:
    """What every job has."""

    seed: int = Field(
        ge=0,
        lt=2**32,
        description="Seed of everything random in the run: initialisation, data order, sampling.",
    )
    output_dir: str = Field(
        min_length=1, description="Run directory to create; the same command again resumes what is there."
    )


Track = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...],
    Field(
        description="Trackers that get the metrics besides metrics.jsonl (extras of the same names); offline unless their "
        "own variables say otherwise."
    ),
]


@record
class DataConfig:
    """Where rows come from."""

    path: str = Field(
        min_length=1,
        description="A .jsonl[.gz], .parquet or .csv file, a folder saved by Hugging Face datasets, a shipped set "
        "(electricity, train-trips), hf:NAME[/CONFIG], tfds:NAME or tfds:DIRECTORY.",
    )
    split: str = Field(
        default="train", min_length=1, description="Split to read; a local file has only train (all of it)."
    )
    prompt_column: str = Field(
        default="prompt", min_length=1, description="What the source calls the prompt."
    )
    chosen_column: str = Field(
        default="chosen", min_length=1, description="What the source calls the preferred completion."
    )
    rejected_column: str = Field(
        default="rejected", min_length=1, description="What the source calls the other completion."
    )
    user_column: str = Field(
        default="user_id", min_length=1, description="What the source calls the column that says who chose."
    )

    @property
    def columns(self) -> dict[str, str]:
        """Our names of columns → those of the source, where they differ."""
        named = {
            field.name.removesuffix("_column"): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.endswith("_column")
        }
        ours = {("user_id" if name == "user" else name): theirs for name, theirs in named.items()}
        return {name: theirs for name, theirs in ours.items() if name != theirs}


@record
class StreamedDataConfig(DataConfig):
    """Preferences, which may be larger than memory."""

    stream: bool = Field(
        default=False,
        description="Read rows when they are visited and not all at the start: .jsonl, .parquet or .array_record, several by a "
        "pattern (`rows-*.jsonl`). Every row is a pair of its own.",
    )


@record
class ExampleDataConfig(DataConfig):
    """Rows to learn from: prompt and completion, messages, text, or both sides of preferences."""

    completion_column: str = Field(
        default="completion", min_length=1, description="What the source calls the completion to learn."
    )
    messages_column: str = Field(
        default="messages", min_length=1, description="What the source calls whole conversations."
    )
    text_column: str = Field(
        default="text",
        min_length=1,
        description="What the source calls plain texts, learned from their beginning.",
    )
    stream: bool = Field(
        default=False,
        description="Read rows when they are visited and not all at the start: .jsonl, .parquet or .array_record, several by a "
        "pattern (`rows-*.jsonl`). Every row of the file is a packed row of its own, and counts as often as it occurs.",
    )


@record
class PeopleDataConfig(DataConfig):
    """Data whose people are divided into training and held-out people."""

    held_out_people: float = Field(
        default=0.2, gt=0, lt=1, description="Share of people never used in fitting; they play the new users."
    )
    split_seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seed of the division of people, apart from `seed` so that it can stay fixed.",
    )
    last_choices: int = Field(
        default=3,
        ge=1,
        le=1_000_000,
        description="Last choices of each held-out person, kept for testing; earlier ones may be asked.",
    )
    min_comparisons: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="People with fewer comparisons are left out, from fitting and from testing.",
    )
    max_people: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000_000,
        description="Keep only so many of those people, drawn by a hash of their names; null keeps all.",
    )
