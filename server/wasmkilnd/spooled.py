"""Bytes that memory should not hold: a file without a name, which ends with those who use it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from tempfile import TemporaryFile

from wasmkilnd import errors
from wasmkilnd.threads import DISK, on_disk

_READ_S = 10.0


class Spooled:
    """Bytes in a file, hashed as they come; who reads them holds a piece at a time.

    Nothing is left of it when nobody holds it any more, or when the process dies. Any thread may
    read. Methods block, and raise OSError; ``read`` is for the event loop.
    """

    def __init__(self, folder: Path) -> None:
        """Begin empty, in ``folder``, which is made if it is not there."""
        folder.mkdir(mode=0o700, exist_ok=True)
        with TemporaryFile(buffering=0, dir=folder) as file:
            self._descriptor = os.dup(file.fileno())
        self._digest, self._size_bytes = hashlib.sha256(), 0

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):  # What nobody can open any more is deleted with that.
            DISK.submit(os.close, self._descriptor)

    def append(self, data: bytes) -> None:
        """Add all of ``data``, or, if it fails, nothing."""
        done = 0
        while done < len(data):
            at = self._size_bytes + done
            done += os.pwrite(self._descriptor, memoryview(data)[done:], at)
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
        return os.pread(self._descriptor, max(0, stop - start), start)

    async def read(self, at: int, size_bytes: int) -> bytes:
        """Return so many bytes from ``at`` on, in a thread. Raises COMPILE_QUEUE_FULL."""
        try:
            async with asyncio.timeout(_READ_S):
                return await on_disk(self.__getitem__, slice(at, at + size_bytes))
        except OSError as failure:
            why = failure.strerror or "it does not answer"
            raise errors.uploads_full(f"cannot read an upload from disk ({why})") from None
