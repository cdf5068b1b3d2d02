"""Jobs of SLURM, through sbatch, scontrol and scancel."""

import re
import subprocess
import time

from rewards.errors import UserError
from rlhf.launch import engine, scripts
from rlhf.launch.engine import Job, called

WRITTEN = "script.sh"
_NAMES = {"completing": "running", "configuring": "pending", "timeout": "failed", "node_fail": "failed"}


def text(job: Job, words: list[str]) -> str:
    """The batch script; sizes and times are as sbatch reads them, two words of its own included.

    Raises:
      UserError: a size or a time that sbatch would not take.
    """
    memory, limit = job.resources.memory, job.resources.time
    if memory is not None and memory != "0":  # 0: all of the node's
        if not re.fullmatch(r"[0-9]+[KMGTkmgt]?", memory):
            raise UserError(f"--memory {memory!r}: no size that sbatch reads; write it as 16G or 500M")
        engine.bytes_of(memory)
    if limit is not None and limit.upper() not in ("UNLIMITED", "INFINITE"):
        engine.seconds_of(limit)
    return scripts.slurm_script(job, words)


def need() -> None:
    engine.need_program("sbatch", "slurm", "run it on a login node")


def submit(job: Job) -> str:
    return called("sbatch", "--parsable", str(job.place / WRITTEN)).strip().split(";")[0]


def status(job: Job) -> str:
    need()
    done = subprocess.run(["scontrol", "show", "job", "-o", job.number], capture_output=True, text=True)
    found = re.search(r"JobState=(\w+)", done.stdout)
    if found is None:
        return "gone"
    state = found[1].lower()
    return _NAMES.get(state, state)


def logs(job: Job, wait: bool) -> None:
    engine.follow_file(job, lambda: status(job) not in engine.RUNNING, wait)


def cancel(job: Job) -> None:
    if (job.resources.tasks or 1) > 1:
        _end_tasks(job)
    else:
        called("scancel", "--full", "--signal=TERM", job.number)
    called("scancel", job.number)


def _end_tasks(job: Job) -> None:
    """Ask the tasks for their checkpoint and wait for it, at most `notice` seconds; the job must not go back into the queue."""
    called("scontrol", "update", f"JobId={job.number}", "Requeue=0")
    called("scancel", "--signal=TERM", job.number)  # not the script, which would only hand it on
    deadline = time.monotonic() + job.resources.notice
    steps = ["squeue", "--steps", "--noheader", "--format=%i", f"--jobs={job.number}"]
    while f"{job.number}.0" in called(*steps).split() and time.monotonic() < deadline:
        time.sleep(0.5)
