"""Signals that end a command: at a safe point where there is one, otherwise as soon as an exception gets through.

SIGINT (Ctrl-C), SIGTERM (`kill`, a batch system) and SIGHUP (a closed terminal) are handled alike:

- Inside `boundaries()` (a training loop) a signal only sets a flag; the loop reads it with `pending()` after each step, writes
  a checkpoint and calls `leave()`.
- Elsewhere it raises `KeyboardInterrupt` in the main thread. Python drops an exception that is raised inside a callback of
  the garbage collector or a finaliser and prints it ("Exception ignored in …"), and JAX has such callbacks; so ours is
  not printed there, and the signal is sent again until the command is on its way out.
- A batch system sends SIGTERM to every process of a job, whose parents hand it on: what comes again within `SAME_SECONDS` is
  the same request.
- A second signal of the user's ends the process at once, also while the main thread is inside a library (a compilation of
  minutes) and runs no handler: a thread reads what the interpreter writes for every signal (`signal.set_wakeup_fd`).
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.5
SAME_SECONDS = 2.0


class _State:
    """What has been received; one for the process, since signals are."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.since = 0.0  # when it was, by the clock that only goes forward
        self.at_boundaries = 0  # depth of `boundaries()`
        self.resent = False  # the signal now handled is our own repetition
        self.said = False  # that the step is waited for


_state = _State()


def status(number: int) -> int:
    """Exit status of a command that a signal ended, as shells have it: 130, 143, 129."""
    return 128 + number


def pending() -> bool:
    """Whether the command was asked to end: read at safe points."""
    return _state.received is not None


def leave() -> NoReturn:
    """End the command at a safe point, once everything is written; where another process was asked to, as if by SIGTERM."""
    raise KeyboardInterrupt(signal.SIGTERM if _state.received is None else _state.received)


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
    _state.received, _state.at_boundaries, _state.resent, _state.said = None, 0, False, False
    with _watched(), _own_is_not_printed():
        # `nohup` has SIGHUP ignored, and means it.
        numbers = [n for n in ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        before = {number: signal.signal(number, _handle) for number in numbers}
        try:
            yield
            if _state.received is not None:  # dropped on its way, and the command ended all the same
                leave()
        except (Exception, SystemExit):
            if (
                _state.received is not None
            ):  # a C extension interrupted while it is imported raises ImportError
                raise KeyboardInterrupt(_state.received) from None
            raise
        finally:
            _state.received = None
            for number, handler in before.items():
                signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    again, _state.resent = _state.resent, False
    if _state.received is not None and not again:
        if _same(number, _state.received, _state.since):
            return
        _end_at_once(number)
    if _state.received is None:
        _state.received, _state.since = number, time.monotonic()
    if _state.at_boundaries:
        _say_waiting()
        return
    raise KeyboardInterrupt(_state.received)


def _same(number: int, first: int, since: float) -> bool:
    """Whether a further signal says no more than the first, which came `since`."""
    return number == first == signal.SIGTERM and time.monotonic() - since < SAME_SECONDS


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """A thread that hears of every signal at once, for the second one, and sends the first again where it was dropped."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reading, threading.get_ident()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the thread
        thread.join()
        os.close(reading)


def _watch(reading: int, main: int) -> None:
    first, since, own = 0, 0.0, 0  # the first signal of the user's; those of ours that are still to be read
    while True:
        ready, _, _ = select.select([reading], [], [], _AGAIN_SECONDS if first else None)
        if ready:
            numbers = os.read(reading, 64)
            if not numbers:
                return
            for number in filter(ENDING.__contains__, numbers):
                if own:
                    own -= 1
                elif first:
                    if not _same(number, first, since):
                        _end_at_once(number)
                else:
                    first, since = number, time.monotonic()
                    if _state.at_boundaries:  # a step may be long
                        _say_waiting()
        elif _state.received is not None and not _state.at_boundaries and not _unwinding(main):
            own, _state.resent = own + 1, True
            signal.pthread_kill(main, first)


@contextlib.contextmanager
def _own_is_not_printed() -> Iterator[None]:
    """What Python drops and prints is left out where it is our own exception, which comes again."""
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs", /) -> None:
        if not (_state.received is not None and isinstance(dropped.exc_value, KeyboardInterrupt)):
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _unwinding(thread: int) -> bool:
    """Whether the thread is on its way out with the interruption, cleaning up."""
    active = sys._current_exceptions().get(thread)
    active = active[1] if isinstance(active, tuple) else active  # Python 3.11 gives the whole triple
    return isinstance(active, KeyboardInterrupt)


def _end_at_once(number: int) -> NoReturn:
    _say("stopped at once; the same command resumes from its last checkpoint")
    os._exit(status(number))


def _say_waiting() -> None:
    if not _state.said:
        _state.said = True
        _say("stopping after this step with a checkpoint; once more to stop at once")


def _say(text: str) -> None:
    # os.write: a print that was interrupted may hold the lock of its buffer.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nchorus: {text}\n".encode())
