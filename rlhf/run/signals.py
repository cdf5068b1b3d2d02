"""Signals that end a command: at a safe point where there is one, otherwise as soon as an exception gets through.

SIGINT (Ctrl-C), SIGTERM (`kill`, a batch system) and SIGHUP (a closed terminal) are handled alike:

- Inside `boundaries()` (a training loop) a signal only sets a flag; the loop reads it with `pending()` after each step, writes
  a checkpoint and calls `leave()`.
- Elsewhere it raises `KeyboardInterrupt` in the main thread. Python drops an exception that is raised inside a callback of
  the garbage collector or a finaliser ("Exception ignored in …"), and JAX has such callbacks; so the signal is sent again
  until the command is on its way out.
- A second signal of the user's ends the process at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.5


class _State:
    """What has been received; one for the process, since signals are."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.at_boundaries = 0  # depth of `boundaries()`
        self.resent = False  # the signal now handled is our own repetition


_state = _State()


def status(number: int) -> int:
    """Exit status of a command that a signal ended, as shells have it: 130, 143, 129."""
    return 128 + number


def pending() -> bool:
    """Whether the command was asked to end: read at safe points."""
    return _state.received is not None


def leave() -> NoReturn:
    """End the command at a safe point, once everything is written."""
    raise KeyboardInterrupt(_state.received)


@contextlib.contextmanager
def boundaries() -> Iterator[None]:
    """Within, a signal waits for the next safe point instead of raising; one that came before is raised on entry."""
    if pending():
        leave()
    _state.at_boundaries += 1
    try:
        yield
    finally:
        _state.at_boundaries -= 1


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let signals end the command inside as described above; only the main thread may set that up.

    Raises:
      KeyboardInterrupt: with the number of the signal, whatever error the interruption was turned into on its way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # `nohup` has SIGHUP ignored, and means it.
    numbers = [n for n in ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, _handle) for number in numbers}
    _state.received, _state.at_boundaries = None, 0
    try:
        yield
        if _state.received is not None:  # dropped on its way, and the command ended all the same
            leave()
    except (Exception, SystemExit):
        if _state.received is not None:  # a C extension interrupted while it is imported raises ImportError
            raise KeyboardInterrupt(_state.received) from None
        raise
    finally:
        _state.received = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    again, _state.resent = _state.resent, False
    if _state.received is not None and not again:
        _end_at_once(number)
    if not again:
        _state.received = number
        threading.Thread(target=_repeat, args=(number,), daemon=True).start()
    if _state.at_boundaries:
        if not again:
            _say("stopping after this step with a checkpoint; once more to stop at once")
        return
    raise KeyboardInterrupt(number)


def _repeat(number: int) -> None:
    """Send the signal again while the command neither unwinds nor is in a loop that reads the flag."""
    main, pause = threading.main_thread().ident, threading.Event()
    while not pause.wait(_AGAIN_SECONDS) and _state.received == number and main is not None:
        if not _state.at_boundaries and not _unwinding(main):
            _state.resent = True
            signal.pthread_kill(main, number)


def _unwinding(thread: int) -> bool:
    """Whether the thread is on its way out with the interruption, cleaning up."""
    active = sys._current_exceptions().get(thread)
    active = active[1] if isinstance(active, tuple) else active  # Python 3.11 gives the whole triple
    return isinstance(active, KeyboardInterrupt)


def _end_at_once(number: int) -> NoReturn:
    _say("stopped at once; the same command resumes from its last checkpoint")
    os._exit(status(number))


def _say(text: str) -> None:
    # os.write: a print that was interrupted may hold the lock of its buffer.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nchorus: {text}\n".encode())
