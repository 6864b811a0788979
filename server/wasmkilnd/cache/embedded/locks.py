"""Locks between processes. The kernel releases them when their holder ends, however it ends."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_S = 0.02


class FileLock:
    """An flock on a file of its own, shared or exclusive.

    Child processes do not inherit its descriptor.
    """

    def __init__(self, path: Path) -> None:
        """Open the file; create it if it is missing. Raises OSError."""
        # Open for as long as the lock may be held.
        self._file = path.open("w")

    def try_shared(self) -> bool:
        """Take the lock, shared with others; return whether that worked."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock, shared with nobody; return whether that worked."""
        return self._try(fcntl.LOCK_EX)

    def wait(self, *, shared: bool, timeout_s: float, abandoned: threading.Event) -> bool:
        """Wait for the lock for at most ``timeout_s``; return whether it was taken.

        Blocks the thread; returns soon after ``abandoned`` is set.
        """
        deadline = time.monotonic() + timeout_s
        while not (self.try_shared() if shared else self.try_exclusive()):
            if time.monotonic() > deadline or abandoned.wait(_POLL_S):
                return False
        return True

    def release(self) -> None:
        """Release the lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
