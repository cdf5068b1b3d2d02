"""Submit, ask after, follow and cancel jobs; launches/NAME holds what was submitted.

launches/NAME/launch.json   engine, command, folder, resources, the scheduler's number
launches/NAME/script.sh     what was submitted; log.txt what it says
"""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rewards import hashed
from rewards.errors import UserError, meant
from rewards.files import JSONObject, write_text
from rewards.shown import without_credentials
from rlhf.launch.scripts import Resources, local_script, slurm_script

FOLDER, RECORD, SCRIPT, LOG = Path("launches"), "launch.json", "script.sh", "log.txt"
ENGINES = ("local", "slurm")
_POLL_SECONDS = 1.0
_RUNNING = ("pending", "running")


def launch(
    engine: str, words: Sequence[str], resources: Resources, *, name: str | None = None, dry_run: bool = False
) -> JSONObject:
    """Submit a command; returns what launch.json holds, and the script.

    Raises:
      UserError: the name is taken, or the scheduler is absent or refuses.
    """
    for word in words:
        if without_credentials(word) != word:
            raise UserError(
                f"{word}: a password in a command would stand in the job's script; name a variable that holds it"
            )
    name = name or _new_name(words)
    place = _place(name).resolve()
    script = (
        local_script(words, place, resources)
        if engine == "local"
        else slurm_script(name, words, place, resources)
    )
    if dry_run:
        return {"name": name, "engine": engine, "script": script}
    if engine == "slurm":
        _need_slurm()
    try:
        place.parent.mkdir(exist_ok=True)
        place.mkdir(mode=0o700)  # a setup line may hold a key
    except OSError as error:
        taken = (
            "exists already; choose another name" if place.exists() else f"cannot be made ({error.strerror})"
        )
        raise UserError(f"--name {name}: {place} {taken}") from None
    write_text(place / SCRIPT, script)
    job = _start(place) if engine == "local" else _submit(place)
    record = {
        "name": name,
        "engine": engine,
        "command": ["chorus", *words],
        "folder": os.getcwd(),
        "resources": dataclasses.asdict(resources),
        "job": job,
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    hashed.write_record(place / RECORD, record)
    return {**record, "script": script}


def _start(place: Path) -> str:
    with open(place / LOG, "ab") as log:
        process = subprocess.Popen(
            ["bash", str(place / SCRIPT)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return str(process.pid)


def _need_slurm() -> None:
    if shutil.which("sbatch") is None:
        raise UserError(
            "chorus launch slurm: no sbatch on this machine; run it on a login node, or see --dry-run"
        )


def _submit(place: Path) -> str:
    try:
        return _slurm("sbatch", "--parsable", str(place / SCRIPT)).strip().split(";")[0]
    except UserError:
        shutil.rmtree(place)
        raise


def _slurm(*words: str) -> str:
    _need_slurm()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{words[0]}: {' '.join(done.stderr.split())}; mend the options, --dry-run shows the script"
        )
    return done.stdout


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
    return hashed.read_record(FOLDER / name / RECORD)


def status(name: str) -> str:
    """pending, running, completed, failed, cancelled or gone (the scheduler has forgotten it)."""
    record = named(name)
    if record["engine"] == "slurm":
        return _slurm_status(record["job"])
    place, process = FOLDER / name, int(record["job"])
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
    running = _is_ours(process, place)  # asked first: the script writes its status before it ends
    with contextlib.suppress(OSError, ValueError):
        ended = int((place / "status").read_text())
        return "completed" if ended == 0 else "cancelled" if ended == 128 + signal.SIGTERM else "failed"
    return "running" if running else "gone"


def _is_ours(process: int, place: Path) -> bool:
    """Whether the process is the job's, and no later one of the same number."""
    with contextlib.suppress(OSError):
        os.kill(process, 0)
        words = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(process)], capture_output=True, text=True
        ).stdout
        return str(place.resolve() / SCRIPT) in words
    return False


def _slurm_status(job: str) -> str:
    done = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True)
    found = re.search(r"JobState=(\w+)", done.stdout)
    if found is None:
        return "gone"
    state = found[1].lower()
    names = {"completing": "running", "configuring": "pending", "timeout": "failed", "node_fail": "failed"}
    return names.get(state, state)


def follow(name: str, *, wait: bool) -> None:
    """Print the log; with `wait` until the job ends."""
    record, place = named(name), 0
    log = FOLDER / record["name"] / LOG
    while True:
        over = status(name) not in _RUNNING
        if log.exists():
            with open(log, "rb") as file:
                file.seek(place)
                text = file.read()
            place += len(text)
            sys.stdout.write(text.decode("utf-8", "replace"))
            sys.stdout.flush()
        if over or not wait:
            return
        time.sleep(_POLL_SECONDS)


def cancel(name: str) -> str:
    """End a job; a run writes its checkpoint first. Returns its state."""
    record = named(name)
    if status(name) in _RUNNING:
        if record["engine"] == "slurm":
            _slurm("scancel", "--full", "--signal=TERM", record["job"])
            _slurm("scancel", record["job"])
        else:
            os.kill(int(record["job"]), signal.SIGTERM)
    return status(name)
