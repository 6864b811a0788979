"""The audit: one line of JSON for each act that somebody may have to answer for.

A line is written with one ``write`` to a file that is opened for it, before the caller gets the
answer. So a daemon that is killed after it answered has lost nothing, and several processes
(daemons, ``wasmkilnd keys``) may write to the same file. A machine that loses power may lose the
last seconds: the daemon does not wait for the disk. Others may rename the file or delete it: the
next line makes it anew.

Each line has ``time``, ``event``, ``identity`` and ``code``; docs/reference/logs.md lists the
events and the other fields. No line has a secret, or bytes of a module. Texts of callers are cut,
and are ASCII once they are JSON, so that no line exceeds 16 KiB.

What succeeds always gets its line. Failures cost a caller little and strangers can cause them, so
of one reason and one identity 100 in a minute are written, and then one line with ``left_out``,
the number of the others.

A disk that is full or hangs does not stop the daemon: it logs "cannot write the audit" once, counts
``wasmkiln_audit_lost_total``, and begins the next line that it can write with how many are lost.
With ``audit_file=log``, lines go to the daemon's log instead, as the event ``audit``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import structlog

from wasmkilnd.errors import CannotUse
from wasmkilnd.files.threads import Threads
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.logs import Repeats

log = structlog.get_logger("wasmkilnd.audit")

TO_LOG: Final = "log"
# So many lines of one kind are written in an interval.
FAILURES: Final = 100
INTERVAL_S: Final = 60.0
# The identity of those who are too many to tell apart.
OTHERS: Final = "(others)"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PATIENCE_S = 2.0  # How long a disk that hangs may hold up the daemon.
_IDENTITY_LENGTH = 400
_TEXT_LENGTH = 200


# Named as in docs/reference/logs.md, which says what each is about.
Event: TypeAlias = Literal[
    "compile", "upload", "admin", "refusal", "change", "start", "stop", "lost"
]
Told: TypeAlias = str | int | bool
Line: TypeAlias = Mapping[str, Told]


def line_of(event: Event, identity: str = "", code: str = "OK", **told: Told) -> Line:
    """Return a line with the time. ``code`` is the name of a gRPC code, or the status of HTTP.

    Empty fields are left out, and texts of callers are cut. Nothing of ``told`` may be a secret.
    """
    who = _cut(identity, _IDENTITY_LENGTH)
    said = {name: x for name, x in told.items() if x != ""}
    cut = {n: _cut(x, _TEXT_LENGTH) if isinstance(x, str) else x for n, x in said.items()}
    return {"time": logs.now(), "event": event, "identity": who, "code": code, **cut}


def cannot_write_audit(path: Path, failure: OSError) -> str:
    """Return why the audit cannot go to ``path``, and what to do."""
    return (
        f"cannot write the audit to {path}: {failure.strerror}; name a file in a folder"
        f" that the daemon may write to with audit_file, or {TO_LOG} for its log"
    )


class Audit:
    """The audit of one process, kept nowhere until ``prepare`` was applied. Thread-safe."""

    def __init__(self, lost: Callable[[int], None] = lambda _: None) -> None:
        """``lost`` counts lines that cannot be written."""
        self._append: Callable[[Line], None] | None = None
        # Whether an audit is kept.
        self.on = False
        self._count_lost, self._lost = lost, 0
        self._failures = Repeats(self._tell_left_out, INTERVAL_S, kinds=1024)
        self._lock = threading.RLock()
        self._thread, self._last = Threads(1, "wasmkiln-audit"), Future[None]()
        self._last.set_result(None)

    def prepare(self, where: str) -> Callable[[], None]:
        """Return what sends lines to ``where``, the setting ``audit_file``. May block.

        On a full disk the daemon serves: it counts the lines that are lost until there is room.
        Raises CannotUse.
        """
        if where in ("", TO_LOG):
            return partial(self._use, _append_to_log if where else None)
        path = Path(where).expanduser()
        try:
            os.close(_open(path))
        except OSError as failure:
            if failure.errno not in _FULL:
                raise CannotUse(cannot_write_audit(path, failure)) from None
        return partial(self._use, partial(self._append_in_time, path))

    def write(self, event: Event, identity: str = "", code: str = "OK", **told: Told) -> None:
        """Write the ``line_of`` these before returning; never raise. Safe from any thread.

        The operating system has the line then: a daemon that is killed loses none. Of lines with
        another code than OK, a flood is counted instead of written.
        """
        if self.on:
            line = line_of(event, identity, code, **told)
            kind = event, code, line.get("reason"), line["identity"]
            if code == "OK" or self._failures.allows(kind, FAILURES, line):
                self._write(line)

    def close(self) -> None:
        """Write that the daemon ends and what was left out, and no more."""
        self.write("stop")
        self._use(None)
        self._thread.shutdown()

    def _use(self, append_to: Callable[[Line], None] | None) -> None:
        self._failures.flush()
        with self._lock:
            self._append, self.on = append_to, append_to is not None

    def _append_in_time(self, path: Path, line: Line) -> None:
        """Append a line. Raises OSError, also if the disk hangs, for which this waits once."""
        if self._last.done():
            self._last = self._thread.submit(append, path, line)
            wait((self._last,), _PATIENCE_S)
        if not self._last.done():
            raise OSError(0, "the disk does not answer")
        self._last.result()

    def _tell_left_out(self, kind: object, last: Line, count: int) -> None:
        known = {
            name: last[name] for name in ("event", "identity", "code", "reason") if name in last
        }
        others = {} if kind else {"identity": OTHERS}
        self._write({"time": logs.now(), **known, **others, "left_out": count})

    def _write(self, line: Line) -> None:
        with self._lock:
            if not self._append:
                return
            try:
                if self._lost:
                    self._append(line_of("lost", lines=self._lost))
                    log.info("the audit is written again", lost=self._lost)
                    self._lost = 0
                self._append(line)
            except Exception as failure:  # a line that cannot be written must not fail a call
                if not self._lost:
                    cause = getattr(failure, "strerror", None) or str(failure)
                    log.error("cannot write the audit", cause=cause)
                self._lost += 1
                self._count_lost(1)


def append(path: Path, line: Line) -> None:
    """Write a line to a file. Raises OSError if not all of it was written.

    Several processes may append to it, rename and delete it.
    """
    # ASCII: no text can end it or forge another.
    left = (json.dumps(line, separators=(",", ":")) + "\n").encode()
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            time.sleep(0.01)  # another process may be in the midst of a line
            # After half a line, when the disk was full, this one must not become part of it.
            left = b"\n" * (os.fstat(descriptor).st_size == size) + left
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file")
    return descriptor


def _append_to_log(line: Line) -> None:
    fields = {**line, "act": line["event"]}
    del fields["time"], fields["event"]  # the log has its own
    log.info("audit", **fields)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
