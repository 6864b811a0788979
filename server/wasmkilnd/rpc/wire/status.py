"""The status that a caller receives for a row of the error table (``errors.Reason``).

It is a ``google.rpc.Status`` in the trailer ``grpc-status-details-bin``, with ErrorInfo
(reason and metadata), BadRequest if a field is at fault, and RetryInfo if waiting helps.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from wasmkilnd.errors import Reason, WasmkilnError

DOMAIN = "wasmkiln"
DETAILS_KEY = "grpc-status-details-bin"

CODES = {reason: grpc.StatusCode[reason.code] for reason in Reason}

# gRPC sends errors as HTTP/2 headers, and its implementations begin to drop headers above
# 8 KiB in all. The message is sent three times: percent-encoded, which can make it three times
# as long; in the status; and with the field at fault. The latter two are in base64.
_MAX_MESSAGE_BYTES = 700
_MAX_METADATA_BYTES = 1500


def to_status(error: WasmkilnError) -> status_pb2.Status:
    """Return the google.rpc.Status of ``error``, with texts cut to what headers can carry."""
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    details = [
        error_details_pb2.ErrorInfo(
            reason=error.reason.value,
            domain=DOMAIN,
            metadata=_within(error.metadata, _MAX_METADATA_BYTES),
        )
    ]
    packed = [_packed(detail) for detail in details]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message
        )
        packed.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = CODES[error.reason].value[0]
    return status_pb2.Status(code=code, message=message, details=packed)


def _within(metadata: Mapping[str, str], limit_bytes: int) -> dict[str, str]:
    """Return the metadata with values cut until keys and values together fit."""
    kept = {}
    for name, value in metadata.items():
        limit_bytes -= len(name)
        kept[name] = _cut(value, max(0, limit_bytes))
        limit_bytes -= len(kept[name].encode())
    return kept


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: max(0, limit_bytes - 3)].decode(errors="ignore") + "…"


def _packed(detail: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    return packed
