"""What a line of the audit says as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from wasmkilnd.ports import AuditLine

IDENTITY_LIMIT = 400
"""The most characters of an identity."""
_TEXT_LIMIT = 200
_FIELDS = (
    *("namespace", "peer", "method", "code", "reason", "module", "engine", "origin"),
    "request_id",
)
_ALWAYS = ("code",)


def fields_of(line: AuditLine) -> dict[str, Any]:
    """Return what a line says as JSON, with the time; texts of callers are cut."""
    fields: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "event": line.event.value,
        "identity": cut(line.identity, IDENTITY_LIMIT),
    }
    for name in _FIELDS:
        value = getattr(line, name)
        if value or name in _ALWAYS:
            fields[name] = cut(value, _TEXT_LIMIT)
    for name, told in line.about.items():
        fields[name] = cut(told, _TEXT_LIMIT) if isinstance(told, str) else told
    return fields


def encoded(fields: dict[str, Any]) -> bytes:
    """Return a line of the audit file. ASCII: no text can end it or forge another."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def cut(text: str, limit: int) -> str:
    """Return ``text``, or its first ``limit`` characters and an ellipsis."""
    return text if len(text) <= limit else f"{text[:limit]}…"
