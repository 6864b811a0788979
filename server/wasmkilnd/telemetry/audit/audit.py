"""Makes the lines of the audit, and sees that each is written or counted as lost."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from wasmkilnd.ports import AuditEvent, AuditLine
from wasmkilnd.telemetry.audit.file import AuditFile
from wasmkilnd.telemetry.audit.floods import FailureLimit, Kind
from wasmkilnd.telemetry.audit.lines import IDENTITY_LIMIT, cut, encoded, fields_of

log = structlog.get_logger("wasmkilnd.audit")

_OK = "OK"
_CHECK_S = 1.0


class Target(Protocol):
    """Where lines go."""

    def append(self, fields: dict[str, Any]) -> None:
        """Write a line. Raises OSError."""
        ...

    def close(self) -> None:
        """Write no more."""
        ...


class Audit:
    """The audit of one process. Thread-safe."""

    def __init__(
        self,
        target: Target | None = None,
        lost: Callable[[int], None] = lambda _: None,
        limit: FailureLimit | None = None,
    ) -> None:
        """Write to ``target``, None for nowhere; ``lost`` counts lines that cannot be written."""
        self._target = target
        self._count_lost = lost
        self._limit = limit or FailureLimit()
        self._lost = 0
        # A finalizer that runs while it is held may log, and so write, too.
        self._lock = threading.RLock()

    @property
    def on(self) -> bool:
        """Whether an audit is kept."""
        return self._target is not None

    def use(self, target: Target | None) -> None:
        """Write to another target from now on."""
        with self._lock:
            if self._target:
                self._end_intervals(all_kinds=True)
                self._target.close()
            self._target = target

    def write(self, line: AuditLine) -> None:
        """See :meth:`wasmkilnd.ports.Auditor.write`."""
        if self._target is None:
            return
        with self._lock:
            if line.code != _OK:
                self._end_intervals()
                kind = Kind(line.event, line.code, line.reason, cut(line.identity, IDENTITY_LIMIT))
                if not self._limit.allows(kind):
                    return
            self._append(fields_of(line))

    async def run(self) -> None:
        """Write what was left out of floods, as they end."""
        while True:
            await asyncio.sleep(_CHECK_S)
            with self._lock:
                self._end_intervals()

    def close(self) -> None:
        """Write what was left out, and no more."""
        self.use(None)

    def _end_intervals(self, *, all_kinds: bool = False) -> None:
        for kind, left_out in self._limit.ended(all_kinds=all_kinds):
            line = AuditLine(
                kind.event,
                identity=kind.identity,
                code=kind.code,
                reason=kind.reason,
                about={"left_out": left_out},
            )
            self._append(fields_of(line))

    def _append(self, fields: dict[str, Any]) -> None:
        if self._target is None:
            return
        try:
            if self._lost:
                lost = AuditLine(AuditEvent.LOST, about={"lines": self._lost})
                self._target.append(fields_of(lost))
                log.info("the audit is written again", lost=self._lost)
                self._lost = 0
            self._target.append(fields)
        except Exception as failure:  # a line that cannot be written must not fail a call
            if not self._lost:
                log.error("cannot write the audit", cause=_cause(failure))
            self._lost += 1
            self._count_lost(1)


class ToFile:
    """Writes lines of JSON to the audit file."""

    def __init__(self, file: AuditFile) -> None:
        self._file = file
        self._trouble = ""

    def append(self, fields: dict[str, Any]) -> None:
        """Write a line. Raises OSError."""
        self._file.append(encoded(fields))
        if self._file.cannot_rotate != self._trouble:
            self._trouble = self._file.cannot_rotate
            if self._trouble:
                log.error("cannot rename the audit file, so it grows", cause=self._trouble)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()


class ToLog:
    """Writes lines to the daemon's log."""

    def append(self, fields: dict[str, Any]) -> None:
        """Write a line."""
        del fields["time"]  # the log has its own
        log.info("audit", act=fields.pop("event"), **fields)

    def close(self) -> None:
        """Do nothing."""


def _cause(failure: Exception) -> str:
    return (failure.strerror or str(failure)) if isinstance(failure, OSError) else repr(failure)
