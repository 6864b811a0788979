"""This process's own folder in ``tmp/``: entries are written here and renamed away to here.

The folder is locked for as long as the process lives, so that another daemon of the host removes
the folders of processes that were killed, and no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
from pathlib import Path

from wasmkilnd.cache.host.folders import is_at

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_TRIES = 10


class Scratch:
    """Names for files on their way in and out. Safe for use from any thread."""

    def __init__(self, directory: Path) -> None:
        """Work below ``directory / "tmp"``, which is made when it is first needed."""
        self._above = directory / "tmp"
        self._lock = threading.Lock()
        self._own: Path | None = None
        self._held = -1

    def fresh(self) -> Path:
        """Return a path that does not exist, in a folder that does. Raises OSError."""
        return self._folder() / secrets.token_hex(8)

    def name(self) -> str:
        """Return the name of the folder, which stands for this process. Raises OSError."""
        return self._folder().name

    def is_alive(self, name: str) -> bool:
        """Return whether the process that works in the folder ``name`` runs. Raises OSError."""
        if self._own and name == self._own.name:
            return True
        try:
            descriptor = os.open(self._above / name, _FOLDER)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def clean(self) -> int:
        """Remove what processes that ended left in ``tmp/``; return how many folders. Never raises.

        What is no folder was put there by somebody else, and goes too.
        """
        removed = 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(self._above):
                path = Path(entry.path)
                if self._own and path.name == self._own.name:
                    continue
                with contextlib.suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        path.unlink()
                    elif not _remove_left(path):
                        continue
                    removed += 1
        return removed

    def close(self) -> None:
        """Remove the folder; never raises."""
        with self._lock:
            self._release()

    def _folder(self) -> Path:
        with self._lock:
            if self._own is None or not is_at(self._own, self._held):
                self._release()
                self._own = self._make()
            return self._own

    def _make(self) -> Path:
        for _ in range(_TRIES):
            if self._above.is_symlink():
                self._above.unlink()
            self._above.mkdir(mode=0o700, exist_ok=True)
            path = self._above / secrets.token_hex(8)
            path.mkdir(mode=0o700)
            held = os.open(path, _FOLDER)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # Another daemon is about to remove it as left over.
                os.close(held)
                continue
            self._held = held
            if is_at(path, self._held):
                return path
            self._release()
        raise FileExistsError(f"cannot make a folder of its own in {self._above}")

    def _release(self) -> None:
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own = None
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _remove_left(path: Path) -> bool:
    """Remove the folder unless a process holds it; return whether none does. Raises OSError."""
    descriptor = os.open(path, _FOLDER)
    try:
        # Until it is gone, so that no process takes it at the last moment.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def delete(path: Path) -> None:
    """Remove a folder with all in it, or what else is there; never raises."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
