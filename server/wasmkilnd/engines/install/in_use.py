"""Know which engines running daemons serve: each holds a shared lock for every engine it serves.

The locks are files in ``<state_dir>/serving/``, one for each engine. The kernel takes a lock back
when its daemon ends, however that ends.
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
    """Say that this process serves the engine, until what is returned is called."""
    file = _lock_file(engine)
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return lambda: None  # A state directory that is read only: nobody is told.
    with suppress(OSError):  # A file system without locks.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def release() -> None:
        nonlocal lock
        if lock >= 0:
            os.close(lock)
            lock = -1

    return release


def is_used(engine: InstalledEngine) -> bool:
    """Return whether another process serves the engine. May block."""
    try:
        lock = os.open(_lock_file(engine), os.O_RDONLY | os.O_CLOEXEC)
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
    """Return the processes that serve any of the engines, as far as they can be seen. May block."""
    files = set()
    for engine in engines:
        with suppress(OSError):
            found = _lock_file(engine).stat()
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


def _lock_file(engine: InstalledEngine) -> Path:
    # Beside the folder of the engines, which other state directories may share by a link.
    return engine.path.parent.parent / "serving" / engine.id
