"""The processes of one job: which of them writes, and how they agree before they compute together.

Every process runs the same program on the same data; XLA lets them exchange arrays. What is left is small: one writes files and
speaks, a decision that one could take otherwise than another (a file that is there, a signal, an error) is taken once for
all. With one process every function here does nothing.

    is_writer()   process 0, which alone writes the run directory
    from_writer   something that only the writer does, and what came of it
    together      something that each does; all fail where one does
    exchange      each process's value, for all
"""

import contextlib
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from rewards.errors import UserError
from rewards.files import JSONObject
from rlhf.run import signals

T = TypeVar("T")
AGAIN = 75
"""Exit status of a process whose job lost another (EX_TEMPFAIL of sysexits.h): start all of them again."""
AGREE = 2  # steps from a signal to the checkpoint: no process is further ahead than one
_POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 8.0  # that process 0, which keeps the job's notes, waits for the others to read them
_MEET_SECONDS = 600  # from the first process that waits to the last that comes
_STOP, _ENDED = "chorus/stop", "chorus/ended"


class _Job:
    """What this process knows of its job."""

    def __init__(self) -> None:
        self.leaving = False
        self.stop: int | None = None


_job = _Job()


def several() -> bool:
    """Whether other processes compute with this one. Where none do it starts no backend, and does not import JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def index() -> int:
    """Number of this process, from 0."""
    return sys.modules["jax"].process_index() if several() else 0


def count() -> int:
    return sys.modules["jax"].process_count() if several() else 1


def is_writer() -> bool:
    """Whether this process writes files, and speaks."""
    return index() == 0


def exchange(value: Any) -> list[Any]:
    """Every process's value (JSON), in their order; all of them call it."""
    if not several():
        return [value]
    import numpy as np  # here, because every command imports this module
    from jax.experimental import multihost_utils

    own = json.dumps(value).encode()
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(own)], np.int32))).reshape(-1)
    room = 1 << max(10, int(sizes.max() - 1).bit_length())  # few sizes, so that few programs are compiled
    padded = np.frombuffer(own.ljust(room, b" "), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), room)
    return [json.loads(row.tobytes()) for row in rows]


def wait_for_all(name: str) -> None:
    """Go on when every process has come here, under the same name, which is used once; nothing is computed."""
    if several():
        _notes().wait_at_barrier(name, _MEET_SECONDS * 1000)


def from_writer(work: Callable[[], T]) -> T:
    """What `work`, done by the writer alone, returns (JSON).

    Raises:
      UserError: in every process, what it raised in the writer.
    """
    if not several():
        return work()
    said = exchange(_outcome(work) if is_writer() else None)[0]
    return _value(said)


def together(work: Callable[[], T]) -> list[T]:
    """What `work` returns (JSON) in every process, in their order.

    Raises:
      UserError: in every process, the first that one of them raised.
    """
    return [_value(said) for said in exchange(_outcome(work))]


def _outcome(work: Callable[[], Any]) -> JSONObject:
    try:
        return {"value": work()}
    except UserError as error:
        return {"error": str(error)}


def _value(said: JSONObject) -> Any:
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def agree(what: str, value: str) -> None:
    """Refuse processes that read something else under the same name.

    Raises:
      UserError: which process differs from process 0.
    """
    said = exchange([value, platform.node()])
    for number, (other, host) in enumerate(said):
        if other != said[0][0]:
            raise UserError(
                f"{what}: process {number} on {host} reads something else than process 0 on {said[0][1]}; give all of them "
                "the same files"
            )


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def ending(step: int) -> bool:
    """Whether training ends after `step`, because this process, or another, was asked to end.

    All answer alike: the first that was asked names a step that none has passed yet. Nobody is more than one step ahead, for a
    step needs all of them.
    """
    if not several():
        return signals.pending()
    if _job.stop is None and signals.pending():
        with contextlib.suppress(Exception):  # another was asked earlier, and that stands
            _notes().key_value_set(_STOP, str(step + AGREE))
    if _job.stop is None:
        found = _read(_STOP)
        _job.stop = None if found is None else int(found)
    return _job.stop is not None and step >= _job.stop


def attend() -> None:
    """From now on end this process when another says that it ends, without waiting for it in vain."""
    threading.Thread(target=_attend, daemon=True).start()


def _attend() -> None:
    while not _job.leaving:
        time.sleep(_POLL_SECONDS)
        found = _read(_ENDED)
        if found is not None and not _job.leaving:
            said = json.loads(found)
            if said["process"] == index():
                return
            with contextlib.suppress(Exception):
                _notes().key_value_set(f"{_ENDED}/{index()}", "read")
            _say(f"process {said['process']} on {said['host']} ended: {said['message']}")
            _end(said["status"])


def leave(status: int, message: str = "") -> None:
    """Part from the other processes: in peace, or, with another status than 0, by telling them why."""
    if not several():
        return
    _job.leaving = True
    with contextlib.suppress(Exception):  # the others may be gone
        if status == 0:
            sys.modules["jax"].distributed.shutdown()
            return
        note = {"process": index(), "host": platform.node(), "status": status, "message": message}
        with contextlib.suppress(Exception):  # another was first
            _notes().key_value_set(_ENDED, json.dumps(note))
        _notes().key_value_set(f"{_ENDED}/{index()}", "read")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        others = {str(number) for number in range(count()) if number != index()}
        while index() == 0 and time.monotonic() < deadline and others:
            others -= {key.rpartition("/")[2] for key, _ in _notes().key_value_dir_get(_ENDED)}
            time.sleep(0.1)


def lost(error: BaseException) -> bool:
    """Whether an exception says that another process of the job is gone."""
    text = f"{type(error).__name__} {error}".lower()
    words = (
        "gloo",
        "nccl",
        "connection closed",
        "connection reset",
        "coordination",
        "heartbeat",
        "remote process",
    )
    return several() and "runtimeerror" in text and any(word in text for word in words)


GONE = (
    "another process of this job is gone (killed, hung, or its machine); this one ends, too. Start all of them again: they "
    "go on from the last checkpoint"
)


def _notes() -> Any:
    """The job's key-value store, of JAX's coordination service; it has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _read(key: str) -> str | None:
    try:
        return _notes().key_value_try_get(key)
    except Exception:  # there is none yet, or nobody who keeps it: then JAX ends this process
        return None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"chorus: {' '.join(text.split())}\n".encode())


def _end(status: int) -> NoReturn:
    logging.shutdown()
    os._exit(status)
