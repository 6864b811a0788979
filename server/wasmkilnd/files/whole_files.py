"""Change small files so that readers see all of a change or none, and processes take turns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

log = structlog.get_logger("wasmkilnd.state")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, for this user only, and rename it there. Raises OSError."""
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change the files of ``folder``. Raises OSError."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class SharedFile:
    """A small file of one namespace to which daemons add in turns. Its methods block."""

    def __init__(self, folder: Path, namespace: str, complaint: str) -> None:
        """``complaint`` is logged once for each cause why nothing can be added."""
        # A namespace may have the name "default", and is another one.
        self._path = folder / (f"ns-{namespace}.json" if namespace else "default.json")
        self._complaint = complaint
        self.trouble = ""
        """Why nothing could be added; empty if that was possible last."""

    def read(self) -> bytes:
        """Return what is in the file; nothing if there is none. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            return self._path.read_bytes()
        return b""

    def add(self, added: Callable[[bytes], bytes]) -> bytes:
        """Return what is in the file, and write what ``added`` makes of it, if that differs.

        If that fails, return nothing; see ``trouble``.
        """
        found, trouble = b"", ""
        try:
            found = self.read()
            if added(found) != found:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                with locked(self._path.parent):
                    write_whole(self._path, added(self.read()))
        except OSError as failure:
            trouble = failure.strerror or str(failure)
            if trouble != self.trouble:
                log.warning(self._complaint, cause=trouble)
        self.trouble = trouble
        return found
