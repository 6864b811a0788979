"""Keeps the embedded server for as long as any daemon of the state directory lives.

A program of its own, with the standard library only:

    python guardian.py FOLDER SERVER_BINARY

Every daemon holds a shared lock on FOLDER/users.lock for as long as it lives; the
kernel takes it back even from a daemon that is killed. While anybody holds it this
program runs the server, and starts it again should it die. As soon as it gets the
lock for itself, nobody is left: it ends the server in good order and goes, and lets
the lock go last. So a daemon that starts in that moment waits, and then starts a
server anew; there is no order of starts and stops in which two servers write the
same data, or a daemon loses its server to another that stops.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_POLL_S = 0.1
_STOP_TIMEOUT_S = 20.0
_HEALTHY_LIFE_S = 5.0
_MAX_RESTART_DELAY_S = 5.0
_DEATHS_UNTIL_DATA_IS_SUSPECT = 3
_PR_SET_PDEATHSIG = 1


def main(folder: Path, binary: str) -> int:
    """Run the server until no daemon is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    with (folder / "guardian.lock").open("w") as alone, (folder / "users.lock").open("w") as users:
        if not _try_lock(alone.fileno()):
            return 0  # Another one was faster.
        server = Server(folder, binary)
        while not _try_lock(users.fileno()):
            server.keep_running()
            time.sleep(_POLL_S)
        server.stop()
    return 0


class Server:
    """The server process, started when it is missing."""

    def __init__(self, folder: Path, binary: str) -> None:
        self._folder = folder
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._delay_s = _POLL_S
        self._early_deaths = 0

    def keep_running(self) -> None:
        """Start the server unless it runs, or died a moment ago."""
        now = time.monotonic()
        if self._process and self._process.poll() is not None:
            if now - self._started_at > _HEALTHY_LIFE_S:
                self._delay_s, self._early_deaths = _POLL_S, 0
            else:
                self._delay_s = min(2 * self._delay_s, _MAX_RESTART_DELAY_S)
                self._early_deaths += 1
            if self._early_deaths >= _DEATHS_UNTIL_DATA_IS_SUSPECT:
                self._put_data_aside()
            self._process, self._start_at = None, now + self._delay_s
        if self._process is None and now >= self._start_at:
            parent = os.getpid()
            self._process = subprocess.Popen(
                [self._binary, str(self._folder / "valkey.conf")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                env={"LC_ALL": "C.UTF-8"},
                preexec_fn=lambda: _die_with(parent),
            )
            self._started_at = now

    def _put_data_aside(self) -> None:
        """The server dies again and again: a cache may start empty, but must start."""
        self._early_deaths = 0
        data = self._folder / "data"
        with contextlib.suppress(OSError):
            data.rename(self._folder / f"broken-{int(time.time())}")
        data.mkdir(mode=0o700, exist_ok=True)

    def stop(self) -> None:
        """End the server, letting it write what it has to."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
