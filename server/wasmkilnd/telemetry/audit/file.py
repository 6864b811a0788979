"""The audit file: appended to, renamed when it is full, and followed when others rename it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_ROTATE_AGAIN_S = 60.0


class AuditFile:
    """Appends lines to a file. Several processes may append to it, and rotate it, at once."""

    def __init__(self, path: Path, limit_bytes: int, kept: int) -> None:
        """Rename the file at ``limit_bytes``, and keep ``kept`` renamed ones."""
        self._path = path
        self._limit_bytes = limit_bytes
        self._kept = kept
        self._descriptor = -1
        self._opened: os.stat_result | None = None
        self._torn = False
        """Whether the last write ended within a line."""
        self._rotate_not_before_s = 0.0
        self.cannot_rotate = ""
        """Why the file could not be renamed; it grows until it can."""

    def open(self) -> None:
        """Open the file, and make it if it is not there. Raises OSError."""
        descriptor = os.open(self._path, _FLAGS | os.O_CREAT, 0o600)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise OSError(0, "it is not a regular file")
        self.close()
        self._descriptor, self._opened = descriptor, found
        size = found.st_size
        self._torn = bool(size) and os.pread(descriptor, 1, size - 1) != b"\n"

    def append(self, line: bytes) -> None:
        """Write a line that ends in a newline. Raises OSError if not all of it was written."""
        now = self._current()
        if now.st_size and now.st_size + len(line) > self._limit_bytes:
            self._rotate()
        # After half a line, when the disk was full, the next one must not become part of it.
        left = memoryview(b"\n" + line if self._torn else line)
        while left:
            left = left[os.write(self._descriptor, left) :]
            self._torn = bool(left)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._opened = -1, None

    def _current(self) -> os.stat_result:
        """Open the file anew if its path leads to another one by now; return what it is."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - pathlib takes twice as long
        except FileNotFoundError:
            found = None
        if found is None or self._opened is None or not os.path.samestat(found, self._opened):
            self.open()
            return os.fstat(self._descriptor)
        return found

    def _rotate(self) -> None:
        """Rename the file, unless another process does. What fails is tried again in a minute."""
        if time.monotonic() < self._rotate_not_before_s:
            return
        try:
            # Whoever renames a file has locked it. The lock ends with the descriptor.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = os.fstat(self._descriptor)
            if not os.path.samestat(self._current(), before):
                return  # another process has renamed it meanwhile
            self._rename_all()
            self.open()
            _copy_access(before, self._descriptor)
        except BlockingIOError:
            return
        except OSError as failure:
            self.cannot_rotate = failure.strerror or str(failure)
            self._rotate_not_before_s = time.monotonic() + _ROTATE_AGAIN_S
        else:
            self.cannot_rotate = ""

    def _rename_all(self) -> None:
        there = 0
        while self._numbered(there + 1).exists():
            there += 1
        for number in range(there, 0, -1):
            if number >= self._kept:
                self._numbered(number).unlink(missing_ok=True)
            else:
                self._numbered(number).rename(self._numbered(number + 1))
        self._path.rename(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _copy_access(before: os.stat_result, descriptor: int) -> None:
    """Let those read the new file who could read the old one."""
    with contextlib.suppress(OSError):  # Only some users may give a file to a group.
        os.fchown(descriptor, -1, before.st_gid)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
