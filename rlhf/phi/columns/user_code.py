"""Users' code, run so that nothing it does can end or stop a command of ours without a word.

It runs in a thread of its own. Whatever it raises (`sys.exit`, a KeyboardInterrupt, an exception that is no `Exception`)
comes back as an ordinary value, and a loop without end is given up after a time; the thread is left behind, and does not
keep the process alive. Ctrl-C reaches the thread that waits, so it is never taken for the user's code.
"""

import contextvars
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Failed(Exception):
    """`error` is what the code raised; None when it took too long."""

    def __init__(self, error: BaseException | None):
        super().__init__(error)
        self.error = error


def run(job: Callable[[], T], seconds: float) -> T:
    """`job()`, given up after `seconds`.

    Raises:
      Failed: it raised anything at all, or took too long.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(job())
        except BaseException as error:  # a user's code may raise anything
            errors.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(work), daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if errors and isinstance(errors[0], Failed):
        raise errors[0]
    raise Failed(errors[0] if errors else None)


def said(failure: Failed, path: Path, seconds: float, option: str) -> str:
    """What happened, for one line: type and text of what was raised and the last line of `path` that it came through.

    Args:
      option: where a longer time can be given.
    """
    error = failure.error
    if error is None:
        return f"no result after {seconds:g} s ({option})"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    at = f" in line {lines[-1]}" if lines else ""
    text = " ".join(_text(error).split())[:160]
    return f"{type(error).__name__}{': ' if text else ''}{text}{at}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # its own __str__ fails
        return "(it cannot be printed)"
