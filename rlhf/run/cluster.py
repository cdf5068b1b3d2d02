"""Several processes, maybe on several hosts, as one job: found in the environment, or given, and joined before JAX starts.

JAX knows SLURM, Open MPI, Kubernetes and Cloud TPU. What it finds there is compared with what `mesh.coordinator`,
`mesh.processes` and `mesh.process` say. Each process is watched by a parent (`rlhf.run.guard`): JAX ends a process whose job
has lost another by an abort, which says neither enough nor little.
"""

import logging
import os
import re
import warnings
from typing import NamedTuple

import jax

from rewards.errors import UserError
from rlhf.run import guard, processes
from rlhf.run.config.common import MeshConfig

HEARTBEAT_SECONDS = 30
"""A process that says nothing for so long is taken for dead."""
JOIN_SECONDS = 300
_GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SIGNS = ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX", *_GIVEN)
_TPU = ("TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "MEGASCALE_COORDINATOR_ADDRESS", "TPU_SKIP_MDS_QUERY")


class Place(NamedTuple):
    """This process among those of its job, and the devices of its host that are its own (None: all)."""

    coordinator: str
    count: int
    index: int
    devices: list[int] | None = None


class _Said(NamedTuple):
    """What an environment says; None where it does not."""

    who: str
    coordinator: str | None
    count: int | None
    index: int | None


def enter(config: MeshConfig) -> None:
    """Join the other processes of this job, where there are any. Nothing happens in a job of one process.

    Raises:
      UserError: flags that contradict the environment or each other; or the others do not come.
      SystemExit: in the parent, with the status of the process that it watched.
    """
    place = found(config)
    if place is None or processes.several():
        return
    if not guard.watched():
        raise SystemExit(guard.run(place.coordinator.rpartition(":")[0]))
    join(place)


def join(place: Place) -> None:
    """Start `jax.distributed`."""
    guard.follow_parent()
    guard.keep_stdout()
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM from `rlhf.run.signals`
    jax.config.update("jax_check_proxy_envs", False)  # it warns of proxies, ours to be passed by included
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"mesh.coordinator {place.coordinator}: the {place.count} processes did not come together ({reason}); start all of "
            "them with this address, each with its own number"
        ) from None
    if not processes.is_writer():
        logging.getLogger("chorus").setLevel(logging.ERROR)
    processes.attend()


def found(config: MeshConfig) -> Place | None:
    """Where this process stands, by the configuration and the environment; None where it is alone.

    Raises:
      UserError: which key contradicts what.
    """
    if config.processes == 1:
        return None
    said = _environment()
    alone = said is None or said.count in (None, 1)
    given = (config.coordinator, config.processes, config.process)
    if alone and given == (None, None, None):
        return None
    if said is None or (alone and said.count is None):
        said = _Said("the environment", None, None, None)
    count = _one("processes", config.processes, said.count, said.who)
    index = _one("process", config.process, said.index, said.who)
    coordinator = config.coordinator or said.coordinator
    for name, value in (("coordinator", coordinator), ("processes", count), ("process", index)):
        if value is None:
            have = ", ".join(f"mesh.{key}" for key, one in zip(_KEYS, given, strict=True) if one is not None)
            raise UserError(
                f"mesh.{name}: missing ({have or said.who} alone is not enough, and {said.who} does not say it); give "
                f"{_MEANT[name]}"
            )
    assert coordinator is not None and count is not None and index is not None, "just looked"
    host, _, port = coordinator.rpartition(":")
    if not (re.fullmatch(_HOST, host) and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        shown = coordinator.rpartition("@")[2]  # what stands before it may be a password
        raise UserError(f"mesh.coordinator {shown}: must be HOST:PORT of process 0, such as 10.0.0.1:8476")
    if index >= count:
        raise UserError(
            f"mesh.process {index}: the {count} processes (mesh.processes) are numbered 0 to {count - 1}"
        )
    return Place(coordinator, count, index, _own_devices())


_KEYS = ("coordinator", "processes", "process")
_HOST = r"[\w.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]"  # a name, IPv4, or IPv6 in brackets
_MEANT = {
    "coordinator": "HOST:PORT of process 0 (mesh.coordinator, --coordinator)",
    "processes": "how many processes there are (mesh.processes, --processes)",
    "process": "the number of this one, from 0 (mesh.process, --process)",
}


def _one(name: str, given: int | None, said: int | None, who: str) -> int | None:
    if given is not None and said is not None and given != said:
        raise UserError(
            f"mesh.{name} {given}: {who} says {said}; leave mesh.{name} out, or start the job otherwise"
        )
    return said if given is None else given


def _environment() -> _Said | None:
    """What the launcher says, by JAX's own readers; None where there is none."""
    if os.environ.get(_GIVEN[1]):
        address, count, index = (os.environ.get(name) or None for name in _GIVEN)
        return _Said(
            f"{_GIVEN[1]}, {_GIVEN[2]}", address, _number(_GIVEN[1], count), _number(_GIVEN[2], index)
        )
    if not any(name in os.environ for name in (*_SIGNS, *_TPU)):
        return None
    from jax._src import (
        clusters,
    )  # the readers that `jax.distributed.initialize` asks; they have no public name

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = [one for one in clusters.ClusterEnv._cluster_types if not one.opt_in_only_method]
        env = next((one for one in known if one.is_env_present()), None)
    if env is None:
        size = _number("OMPI_COMM_WORLD_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE"))
        rank = _number("OMPI_COMM_WORLD_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
        return None if size is None else _Said("Open MPI", os.environ.get(_GIVEN[0]), size, rank)
    who = {"slurm": "SLURM", "ompi": "Open MPI", "k8s": "Kubernetes"}.get(env.name, "Cloud TPU")
    try:
        count = env.get_process_count()
        if count == 1:
            return _Said(who, None, 1, 0)
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = os.environ.get(_GIVEN[0]) or env.get_coordinator_address(JOIN_SECONDS, port)
        return _Said(who, address, count, env.get_process_id())
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"mesh: {who} does not say who the processes are ({reason}); give --coordinator, --processes and --process, or "
            "--processes 1 for this process alone"
        ) from None


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"{name} {text}: must be a whole number")
    return int(text)


def _own_devices() -> list[int] | None:
    """GPUs of this host that are this process's share, where several processes of the job run on it.

    A launcher that shows every process its own GPUs has divided them already.
    """
    local, here = _local()
    shown = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if here < 2:
        return None
    if not shown:
        return [local]
    share = len(shown) // here
    return list(range(local * share, (local + 1) * share)) if share else None


def _local() -> tuple[int, int]:
    """Number of this process among those of its host, and how many they are."""
    env = os.environ
    if "SLURM_LOCALID" in env and "SLURM_PROCID" in env:
        per_node = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1"
        counts: list[int] = []
        for size, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", per_node):
            counts += [int(size)] * int(times or 1)
        node = int(env.get("SLURM_NODEID", 0))
        return int(env["SLURM_LOCALID"]), counts[node] if node < len(counts) else 1
    return int(env.get("OMPI_COMM_WORLD_LOCAL_RANK", 0)), int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
