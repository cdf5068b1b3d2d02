"""Managed jobs of SkyPilot, which finds a machine of a cloud or cluster and another one when it is taken away.

`sky` is called as a program: SkyPilot needs versions of click and uvicorn that others of this environment do not take, so it
lives in an environment of its own. Source: SkyPilot 0.14, task YAML and `sky jobs`.
"""

import json
import re
import subprocess
import sys

from rewards.errors import UserError
from rewards.files import JSONObject
from rewards.shown import without_credentials
from rlhf.launch import engine, scripts
from rlhf.launch.engine import Job, called
from rlhf.launch.kubernetes import object_name
from rlhf.launch.resources import absolute, pairs
from rlhf.launch.yaml_text import yaml_text

WRITTEN = "task.yaml"
_BUCKET = re.compile(r"(s3|gs|r2|cos|oci|nebius|https)://\S+")
_NAMES = {
    "PENDING": "pending",
    "SUBMITTED": "pending",
    "STARTING": "pending",
    "RECOVERING": "pending",
    "RUNNING": "running",
    "WINDING_DOWN": "running",
    "CANCELLING": "running",
    "SUCCEEDED": "completed",
    "CANCELLED": "cancelled",
}


def text(job: Job, words: list[str]) -> str:
    return yaml_text(task(job, words))


def task(job: Job, words: list[str]) -> JSONObject:
    """The task.

    Raises:
      UserError: devices without their kind, or a mount that is no bucket.
    """
    resources = job.resources
    if resources.devices is not None and resources.accelerator is None:
        raise UserError(
            f"--devices {resources.devices}: of which kind? give --accelerator, such as H100 or tpu-v5e"
        )
    for option, value in (("--infra", resources.infra), ("--image", resources.image)):
        if value is not None and re.search(r"\s", value):
            raise UserError(f"{option} {value!r}: holds white space; remove it")
    if resources.accelerator is not None and not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9_.-]*", resources.accelerator
    ):
        raise UserError(
            f"--accelerator {resources.accelerator}: no kind of device; give its name alone, such as H100, and how many with "
            "--devices"
        )
    mounts = {}
    for path, url in pairs(resources.mount, "--mount", "PATH=s3://BUCKET", "="):
        if not (path.startswith("/") and _BUCKET.fullmatch(url)):
            raise UserError(f"--mount {path}={url}: write it as /PATH=s3://BUCKET (or gs://, r2://)")
        if without_credentials(url) != url:
            raise UserError(
                f"--mount {path}={without_credentials(url)}: a password would stand in the task; remove it, SkyPilot has its own"
            )
        absolute(path, f"--mount {path}={url}", "/PATH=s3://BUCKET")
        if path in mounts:
            raise UserError(f"--mount {path}: given twice; leave one out")
        mounts[path] = {
            "source": url,
            "mode": "MOUNT",
        }  # not cached: a checkpoint lies in the bucket once it is written
    kind = resources.accelerator
    wanted = {
        "accelerators": None if kind is None else f"{kind}:{resources.devices or 1}",
        "cpus": None if resources.cpus is None else f"{resources.cpus}+",
        "memory": None if resources.memory is None else f"{_gigabytes(resources.memory)}+",
        "infra": resources.infra,
        "image_id": resources.image,
        "use_spot": True if resources.spot else None,
        "job_recovery": {"strategy": "FAILOVER", "recover_on_exit_codes": [75, 143]},
    }
    return {
        "name": object_name(job.name),
        "workdir": ".",
        "resources": wanted,
        "file_mounts": mounts or None,
        "setup": "\n".join(resources.setup) + "\n" if resources.setup else None,
        "run": scripts.run_script(words, resources),
    }


def _gigabytes(memory: str) -> int:
    return -(-engine.bytes_of(memory) // 2**30)


def need() -> None:
    engine.need_program(
        "sky", "skypilot", "install SkyPilot in an environment of its own (pipx install skypilot)"
    )


def submit(job: Job) -> str:
    called("sky", "jobs", "launch", "--yes", "--detach-run", str(job.place / WRITTEN))
    return object_name(job.name)


def _newest(job: Job) -> JSONObject | None:
    """What SkyPilot has of this name, submitted last."""
    need()
    rows = json.loads(called("sky", "jobs", "queue", "--all", "--output", "json"))
    ours = [row for row in rows if row.get("job_name") == job.number]
    return max(ours, key=lambda row: row["job_id"], default=None)


def status(job: Job) -> str:
    found = _newest(job)
    return "gone" if found is None else _NAMES.get(found["status"], "failed")


def logs(job: Job, wait: bool) -> None:
    found = _newest(job)
    if found is None or _NAMES.get(found["status"]) == "pending" and not wait:
        return
    sys.stdout.flush()
    how = "--follow" if wait else "--no-follow"
    subprocess.run(["sky", "jobs", "logs", "--tail", "0", how, str(found["job_id"])])


def cancel(job: Job) -> None:
    found = _newest(job)
    if found is not None:
        called("sky", "jobs", "cancel", "--yes", str(found["job_id"]))
