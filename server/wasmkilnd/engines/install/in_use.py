"""Know which engines a running daemon serves: it holds a shared lock on each one's ``engine.json``.

The kernel takes the lock back when the daemon ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from wasmkilnd.engines.install.store import InstalledEngine

_LOCKS = Path("/proc/locks")


def hold(engine: InstalledEngine) -> Callable[[], None]:
    """Say that this process uses the engine, until what is returned is called."""
    try:
        lock = os.open(engine.marker, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return lambda: None
    with suppress(OSError):  # A file system without locks: nobody is told.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def release() -> None:
        nonlocal lock
        if lock >= 0:
            os.close(lock)
            lock = -1

    return release


def is_used(engine: InstalledEngine) -> bool:
    """Return whether another process uses the engine. May block."""
    try:
        lock = os.open(engine.marker, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


def users_of(engines: Iterable[InstalledEngine]) -> list[int]:
    """Return the processes that use any of the engines, as far as they can be seen. May block."""
    files = set()
    for engine in engines:
        with suppress(OSError):
            found = engine.marker.stat()
            files.add((os.major(found.st_dev), os.minor(found.st_dev), found.st_ino))
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return []
    pids = set()
    for line in lines:
        # 5: FLOCK  ADVISORY  READ 1234 08:01:5678 0 EOF
        fields = line.split()
        with suppress(ValueError, IndexError):
            major, minor, inode = fields[5].split(":")
            here = (int(major, 16), int(minor, 16), int(inode)) in files
            if here and fields[1] == "FLOCK" and fields[3] == "READ" and int(fields[4]) > 0:
                pids.add(int(fields[4]))
    return sorted(pids - {os.getpid()})
