"""Takes what native libraries write to standard error into the log.

gRPC's core and the C library write to descriptor 2, past Python and our format, and how much
they write is not ours to say. So descriptor 2 becomes a pipe to a small process, which logs
each line like any other. It is a process, not a thread, since the last words of a process
that aborts are the most important ones: they are in the pipe when it dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import structlog

from wasmkilnd.telemetry.logs import pipeline

log = structlog.get_logger("wasmkilnd")

_END_S = 2.0
_BOOT = (
    "import sys; sys.path.append(sys.argv.pop());"
    " from wasmkilnd.telemetry.logs.relay import main; main(*sys.argv[1:])"
)


class _Relay:
    """The process, and how it is told what lines look like."""

    def __init__(self, process: subprocess.Popen[bytes], token: str) -> None:
        self._process = process
        self._token = token

    def configure(self, log_format: str, level: str) -> None:
        """Have the lines look like this from now on."""
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._token} {log_format} {level}\n".encode())

    def watch(self, real: int) -> None:
        """Have lines go to ``real`` as they are once the process has ended, of whatever."""

        def wait() -> None:
            code = self._process.wait()
            if _relay is self:
                os.dup2(real, 2)
                log.error("lines of native libraries are not logged", cause=f"it ended: {code}")

        threading.Thread(target=wait, name="relay", daemon=True).start()

    def wait(self) -> None:
        """Wait until it has written all; not for long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)


_relay: _Relay | None = None


def configure(log_format: str, level: str) -> None:
    """Send all logs to standard error, those of native libraries too while they are relayed."""
    pipeline.configure(log_format, level, sys.stderr)
    if _relay:
        _relay.configure(log_format, level)


@contextmanager
def relayed(log_format: str, level: str) -> Iterator[None]:
    """Log what is written to descriptor 2; ``sys.stderr`` is the real standard error meanwhile."""
    global _relay
    real = os.dup(2)
    before, sys.stderr = sys.stderr, _text(real)
    pipeline.configure(log_format, level, sys.stderr)
    _take_strays()
    try:
        _relay = _start(log_format, level)
        _relay.watch(real)
    except OSError as failure:  # Too many processes: the daemon serves all the same.
        log.warning("lines of native libraries are not logged", cause=str(failure))
    try:
        yield
    finally:
        relay, _relay = _relay, None
        pipeline.flush()
        os.dup2(real, 2)  # Closes the pipe, which ends the process.
        if relay:
            relay.wait()
        pipeline.configure(log_format, level, before)
        sys.stderr.close()
        sys.stderr = before


def _start(log_format: str, level: str) -> _Relay:
    """Make descriptor 2 a pipe to a process that logs to what it was. Raises OSError."""
    token = f"relay-{secrets.token_hex(16)}"
    readable, writable = os.pipe()
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-B", "-c", _BOOT),
                *(token, log_format, level, str(Path(__file__).parents[3])),
            ],
            stdin=readable,
            stdout=subprocess.DEVNULL,
            # Signals to the daemon's group are not for who has to hear its last words.
            start_new_session=True,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
        )
        os.dup2(writable, 2)
    finally:
        os.close(readable)
        os.close(writable)
    return _Relay(process, token)


def _text(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _take_strays() -> None:
    """Log what Python itself would print: warnings, and errors that nobody can catch."""
    logging.captureWarnings(True)

    def in_thread(hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread else ""
        log.error("a thread failed", thread=name, exc_info=hook.exc_value)

    def unraisable(hook: Any) -> None:
        log.error("error ignored", where=repr(hook.object), exc_info=hook.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
