"""Turns a failed gRPC call into the exception that a caller sees."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from wasmkiln._untrusted import seconds
from wasmkiln.errors import (
    ArtifactTooLarge,
    CompileMemoryLimit,
    CompileQueueFull,
    CompilerCrashed,
    CompileTimeout,
    ConnectionFailed,
    CredentialsInvalid,
    CredentialsMissing,
    DeadlineExceeded,
    DigestMismatch,
    EngineLacksFeature,
    EngineRemoved,
    EngineUnknown,
    FieldViolation,
    InternalFailure,
    InvalidRequest,
    ModuleInvalid,
    ModuleNotLoaded,
    ModulePinned,
    ModuleQuarantined,
    ModuleTooLarge,
    NotWasm,
    PinsFull,
    QuotaExceeded,
    RoleMissing,
    ServerDraining,
    SettingUnknown,
    TargetUnsupported,
    UnexpectedAnswer,
    WasmkilnError,
    WorkerUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# The reasons that a daemon sends. Any other, which a newer daemon may send, becomes a plain
# WasmkilnError.
BY_REASON: dict[str, type[WasmkilnError]] = {
    kind.REASON: kind
    for kind in (
        InvalidRequest,
        NotWasm,
        ModuleInvalid,
        ModuleTooLarge,
        DigestMismatch,
        EngineUnknown,
        EngineRemoved,
        TargetUnsupported,
        SettingUnknown,
        EngineLacksFeature,
        ModuleNotLoaded,
        CompileTimeout,
        CompileMemoryLimit,
        ArtifactTooLarge,
        CompilerCrashed,
        InternalFailure,
        ModuleQuarantined,
        CompileQueueFull,
        WorkerUnavailable,
        ServerDraining,
        CredentialsMissing,
        CredentialsInvalid,
        RoleMissing,
        QuotaExceeded,
        ModulePinned,
        PinsFull,
    )
}

_DOMAIN = "wasmkiln"
# An honest error has three details.
_MAX_DETAILS = 100
_DETAILS_KEY = "grpc-status-details-bin"
# How gRPC servers, C core and Go alike, refuse a request above their message limit. Where the
# answer is too large, the C core says "CLIENT: Received …".
_MESSAGE_TOO_LARGE = re.compile(
    r"(?<!CLIENT: )received message larger than max(?: \((\d+) vs\. (\d+)\))?", re.IGNORECASE
)
_METADATA_TOO_LARGE = "received metadata size exceeds"

# What gRPC's own words for a failed connection mean.
_CAUSES = {
    "DNS resolution failed": "unknown host",
    "Domain name not found": "unknown host",
    "Connection refused": "connection refused",
    "No such file or directory": "no such socket",
    "Permission denied": "permission denied for this user",
    "Failed parsing HTTP/2": "the server there does not speak gRPC",
}

# What the daemon, which speaks to every kind of client, cannot say.
_ADVICE = {
    CredentialsMissing.REASON: " (in wasmkiln: token_file or WASMKILN_TOKEN_FILE)",
}
_ADVICE_WITH_CERTIFICATE = (
    " (in wasmkiln: token_file or WASMKILN_TOKEN_FILE; for a certificate cert_file and key_file, "
    "or WASMKILN_CLIENT_CERT_FILE and WASMKILN_CLIENT_KEY_FILE)"
)


def error_from_rpc(failure: Any, *, address: str, timeout_s: float) -> WasmkilnError:
    """Return the exception for a grpc.RpcError of either API, sync or aio. Raise nothing.

    `address` and `timeout_s` (of the whole call, in seconds) appear in messages.
    """
    code: grpc.StatusCode = failure.code()
    text: str = failure.details() or ""
    reason = ""
    metadata: dict[str, str] = {}
    retry_after_s: float | None = None
    violations: list[FieldViolation] = []
    for detail in _details(failure):
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == _DOMAIN:
            reason, metadata = detail.reason, dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_s = max(0.0, seconds(detail.retry_delay))
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations += [FieldViolation(v.field, v.description) for v in detail.field_violations]
    advice = _ADVICE.get(reason, "")
    if reason == CredentialsMissing.REASON and "certificate" in text:
        advice = _ADVICE_WITH_CERTIFICATE
    if not reason:
        plain = _without_reason(code, text, address, timeout_s)
        if plain is not None:
            plain.retry_after_s = retry_after_s
            return plain
    return BY_REASON.get(reason, WasmkilnError)(
        (text or reason or code.name) + advice,
        code=code,
        reason=reason,
        metadata=metadata,
        retry_after_s=retry_after_s,
        field_violations=violations,
    )


def _without_reason(
    code: grpc.StatusCode, text: str, address: str, timeout_s: float
) -> WasmkilnError | None:
    """Return the exception for what gRPC itself reports, or None where it is none of these."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return ConnectionFailed(
            f"no daemon answers at {address}{_cause(text)}: start one with `wasmkilnd serve`, "
            "or set WASMKILN_ADDRESS",
            metadata={"address": address, "detail": text},
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"no answer from {address} within {timeout_s:g} s",
            metadata={"address": address, "timeout_s": f"{timeout_s:g}"},
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return WasmkilnError(
            f"the daemon at {address} does not serve this call there: an older daemon has no such "
            "call, and one with operator_listen serves evict, pin, quarantine and drain only at "
            "those addresses",
            code=code,
            metadata={"address": address, "detail": text},
        )
    too_large = _MESSAGE_TOO_LARGE.search(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and too_large:
        size, limit = too_large.groups()
        return ModuleTooLarge(
            f"the module is larger than the daemon accepts ({text})",
            code=code,
            metadata={"size_bytes": size, "limit_bytes": limit} if size else {},
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _METADATA_TOO_LARGE in text:
        return UnexpectedAnswer(
            f"cannot read the answer of {address}: its metadata is above gRPC's limit",
            code=code,
            metadata={"detail": text},
        )
    return None


def _details(failure: Any) -> Iterator[object]:
    """Yield the rich-error details in a failure's trailers, as far as they can be read."""
    for key, value in failure.trailing_metadata() or ():
        if key != _DETAILS_KEY:
            continue
        try:
            packed = status_pb2.Status.FromString(value).details
            for item in packed[:_MAX_DETAILS]:
                for kind in (
                    error_details_pb2.ErrorInfo,
                    error_details_pb2.RetryInfo,
                    error_details_pb2.BadRequest,
                ):
                    message = kind()
                    if item.Unpack(message):
                        yield message
        except DecodeError:  # damaged, or of another server: code and text still count
            return


def _cause(text: str) -> str:
    return next((f" ({cause})" for words, cause in _CAUSES.items() if words in text), "")
