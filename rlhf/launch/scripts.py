"""The shell script of a job: the command exactly as typed, checkpoint on a notice, back into the queue, on from there."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rewards.names import checked_name


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job asks of its scheduler; None leaves it to the scheduler.

    Attributes:
      time: as SLURM writes it, 2:00:00. memory: 16G. setup: shell lines that come first. options: more of #SBATCH.
      notice: seconds before the time limit or preemption at which the run is asked to write its checkpoint.
    """

    cpus: int | None = None
    devices: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    notice: int = 120

    def __post_init__(self):
        for name in ("memory", "time", "partition"):
            checked_name(getattr(self, name) or "", f"--{name}")
        for option in self.options:
            checked_name(option, "--option")


_BODY = """\
cd {folder} || exit 2
{setup}
# A notice (the end of the time, preemption) ends the run with a checkpoint; the same command then goes on from there.
told=
trap 'told=1; kill -TERM "$run" 2>/dev/null' TERM
{command} &
run=$!
wait "$run"; status=$?
while [ -n "$told" ]; do told=; wait "$run"; status=$?; done
"""
_BACK = """\
if [ $status -eq 143 ] && scontrol show job -o "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  scontrol requeue "$SLURM_JOB_ID"
  sleep 30
fi
"""


def command_line(words: Sequence[str]) -> str:
    """The command as the job's shell reads it, by this very Python."""
    return shlex.join([sys.executable, "-m", "rlhf", *words])


def slurm_script(name: str, words: Sequence[str], place: Path, resources: Resources) -> str:
    """What `sbatch` is given."""
    wanted = {
        "--job-name": name,
        "--output": str(place / "log.txt"),
        "--open-mode": "append",
        "--signal": f"B:TERM@{resources.notice}",
        "--nodes": 1,
        "--ntasks": 1,
        "--cpus-per-task": resources.cpus,
        "--gpus-per-node": resources.devices,
        "--mem": resources.memory,
        "--time": resources.time,
        "--partition": resources.partition,
    }
    head = [f"#SBATCH {option}={value}" for option, value in wanted.items() if value is not None]
    head += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in resources.options)]
    return "\n".join(["#!/bin/bash", *head, _body(words, resources) + _BACK + "exit $status\n"])


def local_script(words: Sequence[str], place: Path, resources: Resources) -> str:
    """What `bash` is given on this machine; the exit status stands in `status` at the end."""
    kept = shlex.quote(str(place / "status"))
    return "#!/bin/bash\n" + _body(words, resources) + f"echo $status > {kept}\nexit $status\n"


def _body(words: Sequence[str], resources: Resources) -> str:
    setup = "\n".join(resources.setup)
    return _BODY.format(folder=shlex.quote(os.getcwd()), setup=setup, command=command_line(words))
