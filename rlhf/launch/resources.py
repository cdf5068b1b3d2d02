"""What a job asks of its engine."""

import dataclasses
from collections.abc import Iterable

from rewards.errors import UserError
from rewards.names import checked_name


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job asks for; None leaves it to the engine. Each engine reads the part that its options name.

    Attributes:
      tasks: processes of the job; None is one.
      cpus, devices: cores of each; GPUs, or chips of a TPU. memory: 16G. time: as SLURM writes it, 2:00:00.
      notice: seconds before the end or preemption at which the run is asked to write its checkpoint.
      setup: shell lines that come first.
      folder: where the command runs; None means here. python: what runs it; None means this Python, or `chorus` of an image.
      partition, options: SLURM's; more lines of #SBATCH.
      image, namespace, queue, priority, node, tpu, volume, secret: Kubernetes: container image, namespace, Kueue's local queue
        and priority class, labels of the node (KEY=VALUE), TPU (TYPE:TOPOLOGY), claims (CLAIM:PATH), secrets as variables.
      address: of Ray's dashboard.
      accelerator, infra, spot, mount: SkyPilot: H100 or the like, cloud/region, preemptible, buckets (PATH=URL).
    """

    tasks: int | None = None
    cpus: int | None = None
    devices: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    notice: int = 120
    folder: str | None = None
    python: str | None = None
    image: str | None = None
    namespace: str | None = None
    queue: str | None = None
    priority: str | None = None
    node: tuple[str, ...] = ()
    tpu: str | None = None
    volume: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    address: str | None = None
    accelerator: str | None = None
    infra: str | None = None
    spot: bool = False
    mount: tuple[str, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as JSON keeps it
                object.__setattr__(self, field.name, value := tuple(value))
            option = {"options": "--option"}.get(field.name, f"--{field.name}")
            for text in value if isinstance(value, tuple) else [value] if isinstance(value, str) else []:
                one_line = (
                    text.replace("\n", " ").replace("\t", " ") if field.name == "setup" else text
                )  # lines of shell
                if not checked_name(one_line, option).strip():
                    raise UserError(f"{option}: empty; leave it out or give a value")


def once(texts: Iterable[str], option: str) -> None:
    """Refuse one of them twice: an engine would take the last, or refuse the job.

    Raises:
      UserError: which.
    """
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise UserError(f"{option} {text}: given twice; leave one out")
        seen.add(text)


def absolute(path: str, option: str, form: str) -> None:
    """Refuse what is no absolute path of a container: a relative one, a step up, a colon (mounts are split there).

    Raises:
      UserError: with the form that is right.
    """
    if not path.startswith("/") or ":" in path or ".." in path.split("/"):
        raise UserError(f"{option}: {path} is no absolute path without .. and colons; write it as {form}")


def pairs(texts: tuple[str, ...], option: str, form: str, mark: str) -> list[tuple[str, str]]:
    """Both sides of options such as KEY=VALUE, split at the first `mark`.

    Raises:
      UserError: one without it, or with an empty side.
    """
    found = []
    for text in texts:
        left, middle, right = text.partition(mark)
        if not (left and middle and right):
            raise UserError(f"{option} {text!r}: write it as {form}")
        found.append((left, right))
    return found
