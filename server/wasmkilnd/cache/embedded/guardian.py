"""Runs the embedded server for as long as any daemon of the state directory runs.

A program of its own, with the standard library only:

    python guardian.py FOLDER SERVER_BINARY SOCKET

Every daemon holds a shared lock on FOLDER/users.lock while it runs; the kernel releases the
lock of a daemon that is killed. While any daemon holds the lock, this program keeps the server
running, and restarts it if it dies. Once this program gets the lock exclusively, no daemon is
left: it stops the server, then ends, and releases the lock last. So a daemon that starts at
that moment waits, and then starts a new server. In no order of starts and stops do two servers
write the same data, and no daemon loses its server because another daemon stops.

A server that dies repeatedly before it ever answers gets an empty data folder: a cache may
start empty, but must start. If it still dies, the data was not to blame: this program puts the
data back and ends with status 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "valkey.conf"
DATA = "data"
GUARDIAN_LOCK = "guardian.lock"
PASSWORD = "password"  # noqa: S105 - the name of the file
USERS_LOCK = "users.lock"

_POLL_S = 0.1
_STOP_TIMEOUT_S = 20.0
# The server creates its socket before it loads its data.
_SOCKET_TIMEOUT_S = 3.0
_TAKE_ATTEMPTS = 50
_TAKE_POLL_S = 0.01
_FIRST_RESTART_DELAY_S = 0.1
_MAX_RESTART_DELAY_S = 5.0
_DEATHS_UNTIL_DATA_IS_SUSPECT = 2
_PR_SET_PDEATHSIG = 1


class GivenUp(Exception):  # noqa: N818 - a decision
    """The server does not run, whatever its data."""


def main(folder: Path, binary: str, address: str) -> int:
    """Run the server until no daemon is left; return the exit status."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    users = (folder / USERS_LOCK).open("w")
    with (folder / GUARDIAN_LOCK).open("w") as alone:
        if not _take(alone.fileno()):
            return 0  # There is another guardian.
        server = Server(folder, binary, address)
        try:
            while not _try_lock(users.fileno()):
                server.keep_running()
                time.sleep(_POLL_S)
        except GivenUp:
            return 1
        server.stop()
    # guardian.lock is free now, and users.lock is held until this process ends: a daemon that
    # waited for users.lock finds guardian.lock free.
    return 0


class Server:
    """The server process, started when it is missing."""

    def __init__(self, folder: Path, binary: str, address: str) -> None:
        self._folder = folder
        self._binary = binary
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False
        self._started_at = 0.0
        self._start_at = 0.0
        self._delay_s = _FIRST_RESTART_DELAY_S
        self._early_deaths = 0
        self._aside: Path | None = None

    def keep_running(self) -> None:
        """Start the server if it does not run, after a delay if it died. Raises GivenUp."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._start_at:
                self._start()
        elif (status := self._process.poll()) is not None:
            self._process = None
            self._start_at = now + self._delay_s
            self._delay_s = min(2 * self._delay_s, _MAX_RESTART_DELAY_S)
            # A server that was killed or told to stop says nothing about its data.
            if not self._answered and status not in (0, -signal.SIGKILL):
                self._count_early_death()
        elif not Path(self._address).exists():
            if now - self._started_at > _SOCKET_TIMEOUT_S:
                self._process.terminate()  # Its socket was deleted, perhaps as a temporary file.
        elif not self._answered and self._answers():
            self._answered = True
            self._early_deaths = 0
            self._aside = None
            self._delay_s = _FIRST_RESTART_DELAY_S

    def stop(self) -> None:
        """Stop the server; let it finish its writes."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        parent = os.getpid()
        self._answered = False
        self._started_at = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [self._binary, str(self._folder / CONFIG)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                env={"LC_ALL": "C.UTF-8"},
                # This process has one thread, so Python code after the fork is safe.
                preexec_fn=lambda: _die_with(parent),
            )
        except OSError as failure:
            raise GivenUp from failure

    def _answers(self) -> bool:
        """Return whether the server has loaded its data, which a connection alone does not tell."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                password = (self._folder / PASSWORD).read_text()
                probe.connect(self._address)
                probe.sendall(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b"".join(iter(lambda: probe.recv(4096), b""))
            except OSError:
                return False
        return b"+PONG" in answer

    def _count_early_death(self) -> None:
        self._early_deaths += 1
        if self._early_deaths < _DEATHS_UNTIL_DATA_IS_SUSPECT:
            return
        data = self._folder / DATA
        if self._aside is not None:
            shutil.rmtree(data, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._aside.rename(data)
            raise GivenUp
        self._early_deaths = 0
        for older in self._folder.glob("broken-*"):
            shutil.rmtree(older, ignore_errors=True)  # Keep one copy to look into.
        self._aside = self._folder / f"broken-{int(time.time())}"
        with contextlib.suppress(OSError):
            data.rename(self._aside)
        data.mkdir(mode=0o700, exist_ok=True)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _take(fd: int) -> bool:
    """Take a lock that daemons hold for an instant when they check whether it is taken."""
    for _ in range(_TAKE_ATTEMPTS):
        if _try_lock(fd):
            return True
        time.sleep(_TAKE_POLL_S)
    return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
