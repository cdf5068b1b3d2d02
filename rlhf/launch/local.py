"""Jobs in the background of this machine."""

import contextlib
import os
import signal
import subprocess

from rlhf.launch import engine, scripts
from rlhf.launch.engine import Job

WRITTEN = "script.sh"
_STATUS = "status"


def text(job: Job, words: list[str]) -> str:
    return scripts.local_script(job, words)


def need() -> None:
    """Nothing but this machine."""


def submit(job: Job) -> str:
    (job.place / _STATUS).unlink(missing_ok=True)
    with open(job.place / engine.LOG, "ab") as log:
        process = subprocess.Popen(
            ["bash", str(job.place / WRITTEN)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return str(process.pid)


def status(job: Job) -> str:
    process = int(job.number)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
    running = _is_ours(process, job)  # asked first: the script writes its status before it ends
    with contextlib.suppress(OSError, ValueError):
        ended = int((job.place / _STATUS).read_text())
        return "completed" if ended == 0 else "cancelled" if ended == 128 + signal.SIGTERM else "failed"
    return "running" if running else "gone"


def _is_ours(process: int, job: Job) -> bool:
    """Whether the process is the job's, and no later one of the same number."""
    with contextlib.suppress(OSError):
        os.kill(process, 0)
        words = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(process)], capture_output=True, text=True
        ).stdout
        return str(job.place / WRITTEN) in words
    return False


def logs(job: Job, wait: bool) -> None:
    engine.follow_file(job, lambda: status(job) not in engine.RUNNING, wait)


def cancel(job: Job) -> None:
    os.kill(int(job.number), signal.SIGTERM)
