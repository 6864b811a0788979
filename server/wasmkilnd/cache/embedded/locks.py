"""Locks between processes. The kernel frees them when their holder ends, however it ends."""

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

    Its descriptor is not inherited by processes that are started meanwhile.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, making it if need be. Raises OSError."""
        # Kept open for as long as the lock is wanted.
        self._file = path.open("w")

    def try_shared(self) -> bool:
        """Take the lock beside others who share it; return whether that worked."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock alone; return whether that worked."""
        return self._try(fcntl.LOCK_EX)

    def wait(self, *, shared: bool, timeout_s: float, abandoned: threading.Event) -> bool:
        """Take the lock when it is free; return whether that was within ``timeout_s``.

        Blocks its thread, but not for long after ``abandoned`` is set.
        """
        deadline = time.monotonic() + timeout_s
        while not (self.try_shared() if shared else self.try_exclusive()):
            if time.monotonic() > deadline or abandoned.wait(_POLL_S):
                return False
        return True

    def release(self) -> None:
        """Let the lock go."""
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
