"""Submit, ask after, follow, cancel and submit again; launches/NAME holds what was submitted.

launches/NAME/launch.json   engine, command, folder, resources, the scheduler's number
launches/NAME/script.sh     what was submitted (jobset.yaml, task.yaml); log.txt what it says, where the engine writes files
"""

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rewards import hashed
from rewards.errors import UserError, meant
from rewards.files import JSONObject, write_text
from rewards.shown import without_credentials
from rlhf.launch import kubernetes, local, ray, skypilot, slurm
from rlhf.launch.engine import RUNNING, Engine, Job
from rlhf.launch.resources import Resources

FOLDER, RECORD = Path("launches"), "launch.json"
ENGINES: dict[str, Engine] = {
    "local": local,
    "slurm": slurm,
    "ray": ray,
    "skypilot": skypilot,
    "kubernetes": kubernetes,
}


def launch(
    engine: str, words: Sequence[str], resources: Resources, *, name: str | None = None, dry_run: bool = False
) -> JSONObject:
    """Submit a command; returns what launch.json holds, and the script or manifest.

    Raises:
      UserError: the name is taken, or the scheduler is absent or refuses.
    """
    for word in words:
        if without_credentials(word) != word:
            raise UserError(
                f"{word}: a password in a command would stand in the job's script; name a variable that holds it"
            )
    name = name or _new_name(words)
    by = ENGINES[engine]
    job = Job(name, _place(name).resolve(), resources)
    script = by.text(job, list(words))
    if dry_run:
        return {"name": name, "engine": engine, "script": script}
    by.need()
    place = job.place
    try:
        place.parent.mkdir(exist_ok=True)
        place.mkdir(mode=0o700)  # a setup line may hold a key
    except OSError as error:
        taken = (
            "exists already; choose another name" if place.exists() else f"cannot be made ({error.strerror})"
        )
        raise UserError(f"--name {name}: {place} {taken}") from None
    write_text(place / by.WRITTEN, script)
    try:
        number = by.submit(job)
    except UserError:
        shutil.rmtree(place)
        raise
    record = {
        "name": name,
        "engine": engine,
        "command": ["chorus", *words],
        "folder": os.getcwd(),
        "resources": dataclasses.asdict(resources),
        "job": number,
        "submitted": _now(),
    }
    hashed.write_record(place / RECORD, record)
    return {**record, "script": script}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _new_name(words: Sequence[str]) -> str:
    """Time, group and subcommand, or group and file."""
    said = "-".join([words[0], *(Path(word).stem for word in words[1:2])])
    name = re.sub(r"[^\w.-]", "_", said)
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"[:100]


def _place(name: str) -> Path:
    """The folder of a launch; no name leads out of launches/."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            f"{name!r}: no name of a launch; up to 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        )
    return FOLDER / name


def named(name: str) -> JSONObject:
    """launch.json of a launch."""
    if not (_place(name) / RECORD).is_file():
        known = sorted(path.parent.name for path in FOLDER.glob(f"*/{RECORD}"))
        raise UserError(
            f"{name}: no such launch in {FOLDER}/; {meant(name, known, 'known: ' + ', '.join(known))}"
        )
    path = FOLDER / name / RECORD
    return hashed.parse_record(path, "restore it, or launch the command again under another name", _whole)


def _whole(record: JSONObject) -> JSONObject:
    """A record with all that a launch keeps."""
    given = record.get("resources")
    known = {field.name for field in dataclasses.fields(Resources)}
    if record.get("engine") not in ENGINES or not isinstance(record.get("job"), str):
        raise UserError(
            f"{RECORD}: holds no launch; restore it, or launch the command again under another name"
        )
    if not isinstance(given, dict) or not set(given) <= known:
        raise UserError(f"{RECORD}: resources are not as they were written; restore it")
    return record


def _job(name: str) -> tuple[Engine, Job]:
    record = named(name)
    job = Job(name, _place(name).resolve(), Resources(**record["resources"]), record["job"])
    return ENGINES[record["engine"]], job


def status(name: str) -> str:
    """pending, running, completed, failed, cancelled or gone (the scheduler has forgotten it)."""
    engine, job = _job(name)
    return engine.status(job)


def follow(name: str, *, wait: bool) -> None:
    """Print the log; with `wait` until the job ends."""
    engine, job = _job(name)
    engine.logs(job, wait)


def cancel(name: str) -> str:
    """End a job; a run writes its checkpoint first. Returns its state."""
    engine, job = _job(name)
    if engine.status(job) in RUNNING:
        engine.cancel(job)
    return engine.status(job)


def requeue(name: str) -> str:
    """Submit what a launch kept once more, after it ended; the command goes on from its checkpoint. Returns its state.

    Raises:
      UserError: it has not ended.
    """
    engine, job = _job(name)
    if (state := engine.status(job)) in RUNNING:
        raise UserError(f"{name}: is {state}; cancel it first, or wait until it ends")
    number = engine.submit(job)
    hashed.write_record(job.place / RECORD, {**named(name), "job": number, "submitted": _now()})
    return engine.status(dataclasses.replace(job, number=number))
