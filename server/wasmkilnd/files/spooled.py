"""Bytes that memory should not hold: a file without a name, which ends with those who use it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import structlog

from wasmkilnd import errors
from wasmkilnd.files.threads import DISK, Threads, on_disk

_READ_S = 10.0
_WRITERS: Final = Threads(2, "wasmkiln-upload")

log = structlog.get_logger("wasmkilnd.rpc")


class Spooled:
    """Bytes in a file, hashed as they come; who reads them holds a piece at a time.

    Nothing is left of it when nobody holds it any more, or when the process dies. Any thread may
    read. Methods block, and raise OSError; those that are async are for the event loop.
    """

    # Its descriptor, once there is one.
    _file: int | None = None
    # Returns why the disk did not take what was written last, "" if it did.
    _writing: asyncio.Future[str] | None = None

    def __init__(self, folder: Path) -> None:
        """Begin empty. The first bytes make ``folder`` and the file."""
        self._folder = folder
        self._digest, self._size_bytes = hashlib.sha256(), 0

    def __del__(self) -> None:
        if self._file is not None:  # What nobody can open any more is deleted with that.
            DISK.submit(os.close, self._file)

    def append(self, data: bytes) -> None:
        """Add all of ``data``, or, if it fails, nothing."""
        if self._file is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with TemporaryFile(buffering=0, dir=self._folder) as file:
                self._file = os.dup(file.fileno())
        done = 0
        while done < len(data):
            at = self._size_bytes + done
            done += os.pwrite(self._file, memoryview(data)[done:], at)
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
        if self._file is None or start >= stop:
            return b""
        return os.pread(self._file, stop - start, start)

    async def write(self, data: bytes, limit_s: float, on_end: Callable[[str], None]) -> None:
        """Append in a thread, wait ``limit_s`` at most. Raises COMPILE_QUEUE_FULL.

        ``on_end`` hears why it failed, or "", whether or not anybody waits for that.
        """
        self._writing = asyncio.get_running_loop().run_in_executor(_WRITERS, self._tried, data)
        self._writing.add_done_callback(lambda written: on_end(written.result()))
        await self.settled(limit_s)

    async def settled(self, limit_s: float) -> None:
        """Wait for what is being written, as ``write`` does."""
        if self._writing is None:
            return
        ended, _ = await asyncio.wait((self._writing,), timeout=limit_s)
        if why := self._writing.result() if ended else f"no answer within {limit_s:g} s":
            log.warning("cannot keep an upload on disk", cause=why)
            raise errors.uploads_full(f"cannot keep the upload on disk ({why})")

    def _tried(self, data: bytes) -> str:
        # An exception would hold this object, which holds it.
        try:
            self.append(data)
        except OSError as failure:
            return failure.strerror or "it fails"
        return ""

    async def read(self, at: int, size_bytes: int) -> bytes:
        """Return so many bytes from ``at`` on, in a thread. Raises COMPILE_QUEUE_FULL."""
        try:
            async with asyncio.timeout(_READ_S):
                return await on_disk(self.__getitem__, slice(at, at + size_bytes))
        except OSError as failure:
            why = failure.strerror or "it does not answer"
            raise errors.uploads_full(f"cannot read an upload from disk ({why})") from None
