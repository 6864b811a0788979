"""Bytes that memory should not hold: a file without a name, which ends with those who use it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO


class Spooled:
    """Bytes in a file, hashed as they come; who reads them holds a piece at a time.

    Nothing is left of it when nobody holds it any more, or when the process dies. Any thread may
    read. Methods block, and raise OSError.
    """

    def __init__(self, folder: Path) -> None:
        """Begin empty, in ``folder``, which is made if it is not there."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._file = TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - __del__ closes it
        self._digest, self._size_bytes = hashlib.sha256(), 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def append(self, data: bytes) -> None:
        """Add all of ``data``, or, if it fails, nothing."""
        done = 0
        while done < len(data):
            at = self._size_bytes + done
            done += os.pwrite(self._file.fileno(), memoryview(data)[done:], at)
        self._digest.update(data)
        self._size_bytes += len(data)

    @property
    def sha256(self) -> str:
        """The SHA-256 of what is there."""
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return self._size_bytes

    def __getitem__(self, at: slice) -> bytes:
        start, stop, _ = at.indices(self._size_bytes)
        return os.pread(self._file.fileno(), max(0, stop - start), start)

    def open(self) -> BinaryIO:
        """Return the bytes as a file of the caller's own, which it closes."""
        return Path(f"/proc/self/fd/{self._file.fileno()}").open("rb")
