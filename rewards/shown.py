"""What people see on a terminal: nothing that a terminal would obey, no passwords of addresses.

Data, completions and names may hold escape sequences; what is printed passes `printable`, once, at the door: standard
output of a command through `Shown`, what it says on standard error through the handler of the logger `chorus`.
"""

import logging
import re
import sys
from typing import Any, TextIO

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# With one slash, too: that is what becomes of an address that is taken for a path.
_CREDENTIALS = re.compile(r"(?<=[A-Za-z0-9+.-]:/)(/?)[^\s/?#'\"]*@")


def printable(text: str) -> str:
    """The text with characters that move the cursor, colour, hide or turn text around written as escapes."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def without_credentials(text: str) -> str:
    """The text with user names and passwords of addresses (https://user:password@host) taken out."""
    return _CREDENTIALS.sub(r"\1***@", text)


class Shown:
    """A text stream that writes to another one what is printable."""

    def __init__(self, stream: TextIO):
        self.raw = stream

    def write(self, text: str) -> int:
        self.raw.write(printable(text))
        return len(text)

    def close(self) -> None:
        """A user's function that closes its output does not close ours."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class _Handler(logging.Handler):
    """Lines on whatever standard error is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(printable(without_credentials(self.format(record))), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _Others(_Handler):
    """What libraries warn of; the logger `chorus` has spoken already."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(lambda record: record.name.partition(".")[0] != "chorus")


def speak() -> None:
    """Let the logger `chorus` speak on standard error; in a program of one's own it is set up as any other logger.

    Libraries' warnings go the same way, where nobody has said otherwise: else the first library that logs sets the root logger up
    (absl does so when Orbax is imported), and every line of ours comes twice, the second time as it is.
    """
    logger, root = logging.getLogger("chorus"), logging.getLogger()
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
    logger.setLevel(logging.INFO)
    if not root.handlers:
        root.addHandler(_Others())
