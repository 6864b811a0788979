"""Know which engines are served: the daemon that serves one holds a shared lock for it.

The locks are files in ``<state_dir>/serving/``, one for each engine. The kernel takes a lock back
when its daemon ends, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wasmkilnd.engines.install.store import InstalledEngine


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


def _lock_file(engine: InstalledEngine) -> Path:
    # Beside the folder of the engines, which other state directories may share by a link.
    return engine.path.parent.parent / "serving" / engine.id
