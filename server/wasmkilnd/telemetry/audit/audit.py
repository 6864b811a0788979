"""Makes the lines of the audit, and sees that each is written or counted as lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from wasmkilnd.ports import AuditEvent, AuditLine
from wasmkilnd.telemetry.audit.file import AuditFile
from wasmkilnd.telemetry.audit.floods import FailureLimit, Kind

log = structlog.get_logger("wasmkilnd.audit")

_OK = "OK"
_CHECK_S = 1.0
_TEXT = 200
_IDENTITY = 400
_FIELDS = (
    *("namespace", "peer", "method", "code", "reason", "module", "engine", "origin"),
    "request_id",
)
_ALWAYS = ("code",)


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
                kind = Kind(line.event, line.code, line.reason, _cut(line.identity, _IDENTITY))
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


def fields_of(line: AuditLine) -> dict[str, Any]:
    """Return what a line says as JSON, with the time; texts of callers are cut."""
    fields: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "event": line.event.value,
        "identity": _cut(line.identity, _IDENTITY),
    }
    for name in _FIELDS:
        value = getattr(line, name)
        if value or name in _ALWAYS:
            fields[name] = _cut(value, _TEXT)
    for name, told in line.about.items():
        fields[name] = _cut(told, _TEXT) if isinstance(told, str) else told
    return fields


def encoded(fields: dict[str, Any]) -> bytes:
    """Return a line of the audit file. ASCII: no text can end it or forge another."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def _cause(failure: Exception) -> str:
    return (failure.strerror or str(failure)) if isinstance(failure, OSError) else repr(failure)
