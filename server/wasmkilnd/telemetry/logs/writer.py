"""Lines on their way to a reader who may stall: a thread writes them, and nobody else waits.

Lines that wait for the reader are bounded in number and bytes. What does not fit, and what cannot
be written (the reader is gone, the disk full), is dropped and counted.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DROPPED: Final = "log lines dropped"
"""The event that says so, once lines can be written again."""
LINES: Final = 4096
BYTES: Final = 4 * 1024 * 1024

# More than any line has, so that each is written whole.
_BUFFER_BYTES = 128 * 1024


class LineWriter(io.RawIOBase):
    """A raw stream to ``descriptor`` whose ``write`` neither blocks nor raises. Thread-safe."""

    def __init__(self, descriptor: int, tell: Callable[[int], object]) -> None:
        """``tell`` logs how many lines were dropped since it was called last, in any thread."""
        self._descriptor = descriptor
        self._tell = tell
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        # Reentrant: a finalizer that runs while it is held may write too.
        self._lock = threading.RLock()
        self._lines = 0
        self._bytes = 0
        self._ended = False
        self._torn = False
        """Whether the last write ended within a line."""
        self._told = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, data: ReadableBuffer, /) -> int:
        """Have ``data``, one or more whole lines, written after all others, or count it."""
        line = bytes(data)
        with self._lock:
            if self._ended or self._lines >= LINES or self._bytes + len(line) > BYTES:
                self.dropped += 1
            else:
                self._lines += 1
                self._bytes += len(line)
                self._queue.put(line)
        return len(line)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def end(self, limit_s: float) -> bool:
        """Write what waits, and end; what comes later is dropped and counted.

        Return False if that takes longer: then the thread may still write to the descriptor.
        """
        with self._lock:
            self._ended = True
            self._queue.put(None)
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            written = self._write(line)
            with self._lock:
                self.dropped += not written
                # Only then, so that a reader who reads now and then does not get these alone.
                roomy = self._lines <= LINES // 2 and self._bytes <= BYTES // 2
                untold = self.dropped - self._told if written and roomy else 0
                self._told += untold
            if untold:
                self._tell(untold)
            with self._lock:
                self._lines -= 1
                self._bytes -= len(line)

    def _write(self, line: bytes) -> bool:
        """Write a line, however long the reader takes; return whether that was possible."""
        # After half a line, when the disk was full, the next one must not become part of it.
        left = memoryview(b"\n" + line if self._torn else line)
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # whoever started the daemon made it so
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll()
                else:
                    self._torn = bool(left)
        except OSError:
            return False
        return True


def as_text(writer: LineWriter) -> TextIO:
    """Return a stream of text that hands ``writer`` each line whole."""
    return io.TextIOWrapper(
        io.BufferedWriter(writer, _BUFFER_BYTES),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
