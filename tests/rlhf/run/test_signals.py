"""Signals end a command with the right status and no traceback, wherever they arrive."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rlhf.run import signals

# A command that says "ready" and then works in `BODY`; what a garbage collector's callback drops is tried, too.
COMMAND = """
import gc, os, sys, time
from rewards.files import atomic_path
from rlhf.apps import cli
from rlhf.run import signals
def ready(*args):
    print("ready", flush=True)
def run(args):
{body}
cli.parse = lambda argv: __import__("argparse").Namespace(run=run, json=False, show=None)
cli.entry()
"""
WAIT = """
    with atomic_path("half"):
        ready()
        time.sleep(60)
"""
# The first exception is dropped: it is raised while a finaliser runs.
DROPPED = """
    class Loud:
        def __del__(self):
            ready()
            time.sleep(1)
    Loud()
    for _ in range(600):
        time.sleep(0.1)
"""
# As JAX does: a callback of the garbage collector.
COLLECTED = """
    def callback(phase, info):
        if not gc.callbacks.remove(callback):
            ready()
            time.sleep(1)
    gc.callbacks.append(callback)
    gc.collect()
    for _ in range(600):
        time.sleep(0.1)
"""
FORGOTTEN = """
    import weakref
    class Thing: pass
    thing = Thing()
    kept = weakref.ref(thing, lambda ref: (ready(), time.sleep(1)))
    del thing
    for _ in range(600):
        time.sleep(0.1)
"""
# Nothing of Python runs in the main thread; other threads do.
INSIDE_A_LIBRARY = """
    import hashlib
    ready()
    hashlib.pbkdf2_hmac("sha512", b"password", b"salt", 100_000_000)
"""
LOOP = """
    with signals.boundaries():
        ready()
        for number in range(600):
            time.sleep(0.1)
            if signals.pending():
                open("checkpoint", "w").write(str(number))
                signals.leave()
"""
SWALLOWED = """
    ready()
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
"""
STUCK = """
    with signals.boundaries():
        ready()
        time.sleep(60)
"""
SLOW_CLEANING = """
    with atomic_path("half"):
        try:
            ready()
            time.sleep(60)
        finally:
            time.sleep(2)
            open("cleaned", "w").close()
"""


def start(body: str, folder) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("number", signals.ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize(
    "body",
    [WAIT, DROPPED, COLLECTED, FORGOTTEN, LOOP, SWALLOWED],
    ids=["wait", "dropped", "collected", "forgotten", "loop", "swallowed"],
)
def test_one_signal(body, number, tmp_path):
    process = start(body, tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    complaint = err.decode()
    assert complaint.count("chorus: interrupted; the same command resumes") == 1
    assert "Traceback" not in complaint and "Exception ignored" not in complaint
    assert [path.name for path in tmp_path.iterdir()] == (["checkpoint"] if body == LOOP else [])


def test_unwinding_is_not_disturbed(tmp_path):
    process = start(SLOW_CLEANING, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["cleaned"]


@pytest.mark.parametrize(
    ("body", "first", "second"),
    [
        (STUCK, signal.SIGTERM, signal.SIGINT),
        (STUCK, signal.SIGINT, signal.SIGINT),
        (SLOW_CLEANING, signal.SIGTERM, signal.SIGINT),
        (WAIT, signal.SIGHUP, signal.SIGTERM),
        (DROPPED, signal.SIGINT, signal.SIGINT),
        (INSIDE_A_LIBRARY, signal.SIGTERM, signal.SIGTERM),
        (INSIDE_A_LIBRARY, signal.SIGINT, signal.SIGHUP),
    ],
)
def test_a_second_signal_ends_at_once(body, first, second, tmp_path):
    process = start(body, tmp_path)
    began = time.monotonic()
    for number in (first, second, second, second, second):
        if process.poll() is None:
            process.send_signal(number)
            time.sleep(0.05 if first != number or number != signal.SIGTERM else signals.SAME_SECONDS + 0.1)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (128 + first, 128 + second) and time.monotonic() - began < 20
    assert b"KeyboardInterrupt" not in err


def test_what_a_batch_system_says_several_times_over_is_one_request(tmp_path):
    """It signals all processes of a job, and those hand it on to their children."""
    process = start(SLOW_CLEANING, tmp_path)
    for _ in range(4):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["cleaned"]


def test_hangup_is_ignored_where_it_was(tmp_path):
    """`nohup chorus …`."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body="    ready()\n    time.sleep(2)\n")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0
