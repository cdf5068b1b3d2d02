"""The parent of a process of a job: it hands on what that says and how it ends, in words where JAX has none.

A process whose job has lost another is aborted from within JAX, with a stack trace and a status that tells no launcher to
start again. The parent prints one line instead and ends with `processes.AGAIN`. When the parent dies, so does the process.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

from rlhf.run import signals
from rlhf.run.processes import AGAIN, GONE

WATCHED = "CHORUS_WATCHED_BY"
_NOISE = re.compile(
    rb"[EFIW]\d{4} \d\d:\d\d|\*\*\* Check failure|\s+@ +0x|terminate called|\s+what\(\)|.*type\.googleapis\.com|"
    rb"\[Gloo\]|Additional GRPC error|:UNKNOWN:|The tasks have crashed|\d+\n"
)


def watched() -> bool:
    """Whether this process has such a parent."""
    return os.environ.get(WATCHED) == str(os.getppid())


def run(coordinator: str) -> int:
    """Run this very command once more as a child and return the status to end with.

    Args:
      coordinator: host of process 0, which no proxy must stand in front of.
    """
    own = {WATCHED: str(os.getpid()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    own["no_grpc_proxy"] = coordinator
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C reaches it once, through its parent
        env=os.environ | own,
    )
    before = {number: signal.signal(number, _hand_on(child)) for number in signals.ENDING}
    try:
        assert child.stderr is not None, "a pipe"
        for line in child.stderr:
            if not _NOISE.match(line):
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status == -signal.SIGABRT:
        print(f"chorus: {GONE}", file=sys.stderr)
        return AGAIN
    return status if status >= 0 else signals.status(-status)


def _hand_on(child: subprocess.Popen[bytes]):
    def handle(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    return handle


def keep_stdout() -> None:
    """What C++ writes to standard output (Gloo does) goes the way of its errors, where the parent sorts out noise."""
    if watched():
        sys.stdout.flush()
        own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)
        os.dup2(2, 1)
        sys.stdout = own


def follow_parent() -> None:
    """End this process when its parent is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(AGAIN)

    if watched():
        threading.Thread(target=watch, daemon=True).start()
