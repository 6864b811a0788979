"""The API's messages as JSON for scripts.

It differs from protobuf's own JSON so that `jq` needs no conversions: 64-bit numbers are
numbers, a duration is its seconds under a name with `_s`, and every field is present. NaN and
infinity are null. A time outside of RFC 3339 is "@" and its seconds since 1970.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from wasmkiln._untrusted import seconds
from wasmkiln.errors import WasmkilnError


def dumps(document: Any) -> str:
    """Return one line of JSON, in ASCII: a file's name may not be valid UTF-8."""
    return json.dumps(document, allow_nan=False)


def to_document(message: Message) -> dict[str, Any]:
    """Return a message as a dictionary that `json` accepts."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        single = isinstance(value, Message)
        if single and not message.HasField(field.name):
            value = None
        name = field.name
        if field.message_type is not None and field.message_type.full_name == (
            Duration.DESCRIPTOR.full_name
        ):
            name += "_s"
        document[name] = _value(value, field.enum_type)
    return document


def _value(value: Any, enum_type: Any) -> Any:
    if isinstance(value, Duration):
        return seconds(value)
    if isinstance(value, Timestamp):
        return _time(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Message):
        return to_document(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(sorted(value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_value(item, enum_type) for item in value]
    if enum_type is not None and isinstance(value, int):
        known = enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value


def _time(value: Timestamp) -> str:
    try:
        return value.ToJsonString()
    except ValueError:
        return f"@{value.seconds}"


def error_document(error: Exception, source: str | None = None) -> dict[str, Any]:
    """Return a failure as {"error": …}; `source` is the input that it belongs to."""
    document: dict[str, Any] = {
        "source": source,
        "message": str(error),
        "code": None,
        "reason": type(error).__name__,
        "metadata": {},
        "retry_after_s": None,
        "field_violations": [],
    }
    if isinstance(error, WasmkilnError):
        document |= {
            "code": error.code.name,
            "reason": error.reason,
            "metadata": error.metadata,
            "retry_after_s": error.retry_after_s,
            "field_violations": [asdict(violation) for violation in error.field_violations],
        }
    return {"error": document}
