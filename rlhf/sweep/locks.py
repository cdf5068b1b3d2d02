"""Locks that the kernel drops when their holder dies, so that none is ever stale."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from rewards.errors import UserError


class Lock:
    """An exclusive lock on a file; a process that inherits `handle` holds it, too."""

    def __init__(self, path: Path):
        self.path, self.handle = path, -1

    def acquire(self) -> bool:
        """Wait for it."""
        return self._take(fcntl.LOCK_EX)

    def attempt(self) -> bool:
        """Take it if it is free."""
        return self._take(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _take(self, how: int) -> bool:
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write here ({error.strerror}); choose another output_dir"
            ) from None
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            os.close(handle)
            return False
        except BaseException:
            os.close(handle)
            raise
        self.handle = handle
        return True

    def release(self) -> None:
        """Close the file; the kernel unlocks it once nobody else has it open."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
