"""What every engine offers, and what they share: a job as it is kept, a program that is called, a log that is followed."""

import dataclasses
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rewards.errors import UserError
from rlhf.launch.resources import Resources

LOG = "log.txt"
RUNNING = ("pending", "running")
_POLL_SECONDS = 1.0
_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Job:
    """A launch: its folder in launches/, what it asks for, and its number or name at the scheduler once it has one."""

    name: str
    place: Path
    resources: Resources
    number: str = ""


class Engine(Protocol):
    """A module of this package that runs jobs somewhere."""

    @property
    def WRITTEN(self) -> str:
        """Name of the file in launches/NAME that is submitted."""
        ...

    def text(self, job: Job, words: list[str]) -> str:
        """What is submitted."""
        ...

    def need(self) -> None:
        """Raise a UserError where nothing can be submitted from here."""
        ...

    def submit(self, job: Job) -> str:
        """Submit the written file; its number there."""
        ...

    def status(self, job: Job) -> str:
        """pending, running, completed, failed, cancelled or gone."""
        ...

    def logs(self, job: Job, wait: bool) -> None:
        """Print what the job said; with `wait` until it ends."""
        ...

    def cancel(self, job: Job) -> None:
        """End it; a run writes its checkpoint first."""
        ...


def need_program(program: str, engine: str, where: str) -> None:
    """A UserError where a program is missing."""
    if shutil.which(program) is None:
        raise UserError(f"chorus launch {engine}: no {program} on this machine; {where}, or see --dry-run")


def called(*words: str, refused: str = "mend the options, --dry-run shows what is submitted") -> str:
    """Output of a program.

    Raises:
      UserError: it refuses, with what it says.
    """
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        raise UserError(f"{words[0]}: {said}; {refused}")
    return done.stdout


def follow(read: Callable[[int], bytes], over: Callable[[], bool], wait: bool) -> None:
    """Print what `read` gives from a place on; with `wait` until the job is over."""
    place = 0
    while True:
        ended = over()
        text = read(place)
        place += len(text)
        sys.stdout.write(text.decode("utf-8", "replace"))
        sys.stdout.flush()
        if ended or not wait:
            return
        time.sleep(_POLL_SECONDS)


def follow_file(job: Job, over: Callable[[], bool], wait: bool) -> None:
    """Print the log of a job that writes it into its folder."""

    def read(place: int) -> bytes:
        log = job.place / LOG
        if not log.exists():
            return b""
        with open(log, "rb") as file:
            file.seek(place)
            return file.read()

    follow(read, over, wait)


def bytes_of(memory: str) -> int:
    """Bytes of 16G, 500M or a number of megabytes, as SLURM reads them.

    Raises:
      UserError: something else.
    """
    found = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", memory.strip(), re.IGNORECASE)
    size = 0 if found is None or len(found[1]) > 18 else int(found[1]) * _UNITS[found[2].upper()]
    if not 0 < size < 2**50:  # a petabyte: a digit too many
        raise UserError(f"--memory {memory!r}: no size; write it as 16G or 500M")
    return size


def seconds_of(limit: str) -> int:
    """Seconds of a limit as SLURM reads it: MM, MM:SS, H:MM:SS, D-H, D-H:MM or D-H:MM:SS.

    Raises:
      UserError: something else.
    """
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if (
        not limit.isascii()
        or not all(part.isdecimal() for part in (*parts, *([days] if dash else [])))
        or len(parts) > 3
    ):
        raise UserError(f"--time {limit!r}: no time; write it as H:MM:SS")
    numbers = [int(part) for part in parts]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    whole = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 0 < whole < 2**31:
        raise UserError(f"--time {limit!r}: no time; write it as H:MM:SS")
    return whole
