"""Jobs of a Ray cluster, through its job submission interface.

The folder and the Python must be there on the cluster as here (a shared disk). Ray puts no job back into a queue by itself:
`chorus launch requeue` submits it again, and the run goes on from its checkpoint.
"""

import dataclasses
import os
import shlex
import sys
import time
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rewards.errors import UserError
from rewards.shown import without_credentials
from rlhf.launch import engine, scripts
from rlhf.launch.engine import Job

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient  # pyright: ignore[reportMissingImports]

T = TypeVar("T")
WRITTEN = "script.sh"
ADDRESS = "http://127.0.0.1:8265"
_NAMES = {
    "pending": "pending",
    "running": "running",
    "succeeded": "completed",
    "stopped": "cancelled",
    "failed": "failed",
}
_STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"


def text(job: Job, words: list[str]) -> str:
    if (address := job.resources.address) is not None:
        _check(address)
    if job.resources.memory is not None:
        engine.bytes_of(job.resources.memory)
    here = dataclasses.replace(
        job.resources,
        folder=job.resources.folder or os.getcwd(),
        python=job.resources.python or sys.executable,
    )
    return "#!/bin/bash\n" + scripts.own_script(
        words, here
    )  # Ray tells every process of a job to stop: one may hear of it


def _check(address: str) -> None:
    """Refuse what is no address of a dashboard, before anything is kept or asked."""
    if without_credentials(address) != address:
        raise UserError(
            f"--address {without_credentials(address)}: a password would be kept in launch.json; remove it, and put what the "
            "cluster asks for into RAY_JOB_HEADERS"
        )
    try:
        parts = urllib.parse.urlsplit(address)
        right = parts.scheme in ("http", "https", "ray") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        right = False
    if not right:
        raise UserError(f"--address {address}: no address of a dashboard; write it as http://HOST:8265")


def need() -> None:
    try:
        import ray.job_submission  # noqa: F401 # pyright: ignore[reportMissingImports] (seconds to import)
    except ImportError:
        raise UserError(
            "chorus launch ray: Ray is not installed here; pip install 'chorus-rlhf[ray]', or see --dry-run"
        ) from None


def submit(job: Job) -> str:
    resources = job.resources
    number = f"{job.name}-{time.strftime('%H%M%S')}-{os.getpid()}"
    return _asked(
        job,
        lambda client: client.submit_job(
            entrypoint=shlex.join(["bash", "-c", (job.place / WRITTEN).read_text()]),
            submission_id=number,
            metadata={"launch": job.name},
            runtime_env={"env_vars": {_STOP_SECONDS: str(resources.notice)}},
            entrypoint_num_cpus=resources.cpus,
            entrypoint_num_gpus=resources.devices,
            entrypoint_memory=None if resources.memory is None else engine.bytes_of(resources.memory),
        ),
    )


def status(job: Job) -> str:
    try:
        said = _asked(job, lambda client: client.get_job_status(job.number))
    except _Unknown:
        return "gone"
    return _NAMES[said.lower()]


def logs(job: Job, wait: bool) -> None:
    def read(place: int) -> bytes:
        try:
            return _asked(job, lambda client: client.get_job_logs(job.number)).encode()[place:]
        except _Unknown:
            return b""

    engine.follow(read, lambda: status(job) not in engine.RUNNING, wait)


def cancel(job: Job) -> None:
    _asked(job, lambda client: client.stop_job(job.number))


class _Unknown(UserError):
    """Ray has no job of this number (any more)."""


def _asked(job: Job, question: "Callable[[JobSubmissionClient], T]") -> T:
    """What the cluster answers.

    Raises:
      UserError: no cluster, or it refuses.
    """
    need()
    from ray.job_submission import JobSubmissionClient  # pyright: ignore[reportMissingImports]

    address = job.resources.address or os.environ.get("RAY_ADDRESS") or ADDRESS
    try:
        return question(JobSubmissionClient(address))
    except (ConnectionError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"--address {address}: Ray does not answer ({said}); start a cluster (ray start --head) or give the "
            "address of its dashboard"
        ) from None
    except RuntimeError as error:
        said = " ".join(str(error).split())
        kind = _Unknown if "404" in said or "does not exist" in said else UserError
        raise kind(f"Ray at {address} refuses: {said}") from None
