"""The shell of a job: the command exactly as typed, checkpoint on a notice, back into the queue, on from there."""

import os
import shlex
import sys
from collections.abc import Sequence

from rlhf.launch.engine import LOG, Job
from rlhf.launch.resources import Resources

_BODY = """\
cd {folder} || exit 2
{setup}
# A notice (the end of the time, preemption) ends the run with a checkpoint; the same command then goes on from there.
told=
trap 'told=1; {tell} 2>/dev/null' TERM
{command} &
run=$!
wait "$run"; status=$?
while [ -n "$told" ]; do told=; wait "$run"; status=$?; done
"""
_BACK = """\
if { [ $status -eq 143 ] || [ $status -eq 75 ]; } && scontrol show job -o "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  scontrol requeue "$SLURM_JOB_ID"
  sleep 30
fi
"""


_TELL = 'kill -TERM "$run"'
_TELL_TASKS = 'scancel --signal=TERM "$SLURM_JOB_ID"'
"""The tasks themselves: srun would end the whole step, and soon after by force."""
_LOST = """\
# srun gives the worst status. A task that was killed has 137, and the others end with 75, "try again"; one that is killed
# whenever it runs is not tried for ever.
if [ $status -eq 137 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {tries} ]; then status=75; fi
"""
TRIES = 20
_OTHERS_WORK = '[ "$SLURM_PROCID" = 0 ] || set -- "$@" --worker; exec "$@"'


def command_line(words: Sequence[str], resources: Resources | None = None) -> str:
    """The command as the job's shell reads it, by this very Python or the one of --python."""
    python = (resources and resources.python) or sys.executable
    return shlex.join([python, "-m", "rlhf", *words])


def slurm_script(job: Job, words: Sequence[str]) -> str:
    """What `sbatch` is given."""
    resources = job.resources
    several = (resources.tasks or 1) > 1
    wanted = {
        "--job-name": job.name,
        "--output": str(job.place / LOG),
        "--open-mode": "append",
        "--signal": f"B:TERM@{resources.notice}",
        "--nodes": None if several else 1,
        "--ntasks": resources.tasks or 1,
        "--cpus-per-task": resources.cpus,
        "--gpus-per-node": resources.devices,
        "--mem": resources.memory,
        "--time": resources.time,
        "--partition": resources.partition,
    }
    head = [f"#SBATCH {option}={value}" for option, value in wanted.items() if value is not None]
    head += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in resources.options)]
    lost = _LOST.format(tries=TRIES) if several else ""
    return "\n".join(["#!/bin/bash", *head, body(words, resources) + lost + _BACK + "exit $status\n"])


def local_script(job: Job, words: Sequence[str]) -> str:
    """What `bash` is given on this machine; the exit status stands in `status` at the end."""
    kept = shlex.quote(str(job.place / "status"))
    return "#!/bin/bash\n" + body(words, job.resources) + f"echo $status > {kept}\nexit $status\n"


def body(words: Sequence[str], resources: Resources) -> str:
    """The part that all engines on a shared disk have; `$status` is the command's at its end."""
    return _BODY.format(
        folder=shlex.quote(resources.folder or os.getcwd()),
        setup="\n".join(resources.setup),
        tell=_TELL_TASKS if (resources.tasks or 1) > 1 else _TELL,
        command=_in_tasks(words, resources) + command_line(words, resources),
    )


def _in_tasks(words: Sequence[str], resources: Resources) -> str:
    """What starts a command as several tasks of SLURM: of a training its processes, of a sweep the command and more workers.

    No task is ended because another has: processes of a training notice it themselves (`rlhf.run.guard`), and workers that
    have nothing left to do may leave early.
    """
    if (resources.tasks or 1) == 1:
        return ""
    srun = ["srun", f"--ntasks={resources.tasks}", "--kill-on-bad-exit=0", "--wait=0"]
    srun += [] if resources.cpus is None else [f"--cpus-per-task={resources.cpus}"]
    if words[0] == "sweep":
        srun += ["bash", "-c", _OTHERS_WORK, "worker"]
    return shlex.join(srun) + " "


def own_script(words: Sequence[str], resources: Resources) -> str:
    """A script whose command takes the shell's place, so signals reach it once; without folder and python: where the engine
    starts it, by the `chorus` that is installed there."""
    return "".join(f"{line}\n" for line in (*_folder(resources), *resources.setup)) + _exec(words, resources)


def run_script(words: Sequence[str], resources: Resources) -> str:
    """The same where the engine runs the setup by itself."""
    return "".join(f"{line}\n" for line in _folder(resources)) + _exec(words, resources)


def _folder(resources: Resources) -> list[str]:
    return [] if resources.folder is None else [f"cd {shlex.quote(resources.folder)} || exit 2"]


def _exec(words: Sequence[str], resources: Resources) -> str:
    program = ["chorus"] if resources.python is None else [resources.python, "-m", "rlhf"]
    return "exec " + shlex.join([*program, *words]) + "\n"
