"""How lines that native libraries write to standard error get into the log.

gRPC's core and the C library write to descriptor 2, past Python and the log's format, and the
daemon cannot limit how much. So descriptor 2 becomes a pipe to the relay, a small process that
logs each line like any other. It is a process, not a thread, because the most important lines
are the last ones of a daemon that aborts: they are in the pipe when the daemon is gone.

Daemon and relay write to the real standard error through a ``LineWriter`` each, so neither waits
for a reader who stalls.
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
from typing import Any

import structlog

from wasmkilnd.telemetry.logs import pipeline
from wasmkilnd.telemetry.logs.writer import DROPPED, LineWriter, as_text

log = structlog.get_logger("wasmkilnd")

_END_S = 2.0
_BOOT = (
    "import sys; sys.path.append(sys.argv.pop());"
    " from wasmkilnd.telemetry.logs.relay import main; main(*sys.argv[1:])"
)


class _Relay:
    """The relay process, seen from the daemon."""

    def __init__(self, process: subprocess.Popen[bytes], token: str) -> None:
        self._process = process
        self._token = token

    def configure(self, log_format: str, level: str) -> None:
        """Set the format and level of its lines from now on."""
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._token} {log_format} {level}\n".encode())

    def watch(self, real: int) -> None:
        """Make descriptor 2 ``real`` again when the process ends, for whatever cause."""

        def wait() -> None:
            global _relay
            code = self._process.wait()
            if _relay is self:
                _relay = None
                os.dup2(real, 2)
                log.error(
                    "cannot log lines of native libraries",
                    cause=f"the relay process ended with status {code}",
                )

        threading.Thread(target=wait, name="relay", daemon=True).start()

    def wait(self) -> None:
        """Wait until the process has written all and ended, for 2 s at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)


_relay: _Relay | None = None
_writer: LineWriter | None = None


def configure(log_format: str, level: str) -> None:
    """Send all logs to standard error; inside ``relayed``, those of native libraries too."""
    pipeline.configure(log_format, level, sys.stderr)
    if _relay:
        _relay.configure(log_format, level)


def dropped_lines() -> int:
    """Return how many lines of the daemon were dropped: nobody read them in time."""
    return _writer.dropped if _writer else 0


@contextmanager
def relayed(log_format: str, level: str) -> Iterator[None]:
    """Log what anything writes to descriptor 2.

    ``sys.stderr`` goes to the real standard error meanwhile, past the relay, and never blocks.
    """
    global _relay, _writer
    real = os.dup(2)
    _writer = writer = LineWriter(real, lambda count: log.error(DROPPED, lines=count))
    before, sys.stderr = sys.stderr, as_text(writer)
    pipeline.configure(log_format, level, sys.stderr)
    _log_stray_errors()
    try:
        _relay = _start(log_format, level)
        _relay.watch(real)
    except OSError as failure:  # too many processes, say: the daemon serves without a relay
        log.warning("cannot log lines of native libraries", cause=str(failure))
    try:
        yield
    finally:
        relay, _relay = _relay, None
        pipeline.flush()
        if not writer.end(_END_S):  # what follows must not wait for the reader either
            real = os.open(os.devnull, os.O_WRONLY)
        os.dup2(real, 2)  # closes the pipe, which ends the relay
        os.close(real)
        pipeline.configure(log_format, level, before)
        sys.stderr = before
        if relay:
            relay.wait()


def _start(log_format: str, level: str) -> _Relay:
    """Start a relay that logs to descriptor 2, and make 2 a pipe to it. Raise OSError."""
    token = f"relay-{secrets.token_hex(16)}"
    journal = {k: v for k, v in os.environ.items() if k == "JOURNAL_STREAM"}
    readable, writable = os.pipe()
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-B", "-c", _BOOT),
                *(token, log_format, level, str(Path(__file__).parents[3])),
            ],
            stdin=readable,
            stdout=subprocess.DEVNULL,
            # A signal to the daemon's group must not end the relay before the daemon.
            start_new_session=True,
            cwd="/",
            env={"LC_ALL": "C.UTF-8", **journal},
        )
        os.dup2(writable, 2)
    finally:
        os.close(readable)
        os.close(writable)
    return _Relay(process, token)


def _log_stray_errors() -> None:
    """Log what Python itself would print: warnings, and errors that no code can catch."""
    logging.captureWarnings(True)

    def in_thread(hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread else ""
        log.error("a thread failed", thread=name, exc_info=hook.exc_value)

    def unraisable(hook: Any) -> None:
        log.error("error ignored", where=repr(hook.object), exc_info=hook.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
