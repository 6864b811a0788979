"""One call to a daemon, without any I/O: its deadline, its pauses, its answer, its errors.

`Client` and `AsyncClient` do the calling (client.py). What arrives is checked here as far as every
answer has the same promises: it is one message of its type, and an error has the contract's reason.
grpc is imported by the first call.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from wasmkiln import errors
from wasmkiln._untrusted import quoted, seconds

if TYPE_CHECKING:
    from wasmkiln.credentials import Metadata

M = TypeVar("M", bound=Message)

# The longest list of the contract has 10,000 elements; a newer daemon may send more. 4 MiB hold two
# million, and a caller would walk through them for minutes. FindMissing has keys with settings.
_MAX_ELEMENTS, _MAX_KEYS = 100_000, 1_000_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0

# In gRPC's words: failures of a connection that another attempt does not heal.
_LASTING = ("handshake failed", "Hostname Verification", "Failed parsing HTTP/2")
# In gRPC's words: a proxy or a daemon that ends cut one stream, or it ended without a status. gRPC
# says something else of a call that this client cancelled.
_CUT = re.compile("CANCELLED|.*(?:RST_STREAM|Stream removed).*")
# What gRPC's own words for a failed connection mean.
_CAUSES = {
    "DNS resolution failed": "unknown host",
    "Domain name not found": "unknown host",
    "Connection refused": "connection refused",
    "No such file or directory": "no such socket",
    "Permission denied": "permission denied for this user",
    "Failed parsing HTTP/2": "the server there does not speak gRPC",
}
# How gRPC servers, C core and Go alike, refuse a request above their message limit. Where the
# answer is too large, the C core says "CLIENT: Received …".
_MESSAGE_TOO_LARGE = re.compile(
    r"(?<!CLIENT: )received message larger than max(?: \((\d+) vs\. (\d+)\))?", re.IGNORECASE
)


class Deadline:
    """The moment at which a call ends, all of its attempts included.

    - ``waits``: whether its next attempt waits for a connection, and does not fail without one.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.waits = False
        self._end_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left; zero or less once the deadline has passed."""
        return self._end_s - time.monotonic()


class One(Generic[M]):
    """Takes an answer of one message."""

    def __init__(self, kind: type[M]) -> None:
        self._kind = kind
        self._message: M | None = None

    def add(self, wire: bytes) -> None:
        """Take it. Raise UnexpectedAnswer for a second one, and for what cannot be parsed."""
        if self._message is not None:
            raise errors.UnexpectedAnswer("the daemon sent two answers to one call")
        self._message = parsed(self._kind, wire)
        limit = _MAX_KEYS if self._kind.__name__ == "FindMissingResponse" else _MAX_ELEMENTS
        if _elements(self._message, limit) > limit:
            raise errors.UnexpectedAnswer(
                f"the daemon's answer has more than {limit:,} list elements: more than this client "
                "takes"
            )

    def message(self) -> M:
        """Return it. Raise UnexpectedAnswer when there is none."""
        if self._message is None:
            raise errors.UnexpectedAnswer("the daemon ended the call without an answer")
        return self._message


def pause_s(error: errors.WasmkilnError, attempt: int) -> float | None:
    """Return the seconds to wait after the failure of attempt 1, 2, …, or None to give up.

    An error allows another attempt by a RetryInfo, whose delay is kept, or by the code
    UNAVAILABLE: the connection failed, or the daemon shuts down; so does UPLOAD_INTERRUPTED. Every
    RPC is idempotent, so trying again is safe even if the daemon did the work before the
    connection broke. A stream that was cut without a reason is such a connection.
    """
    if any(words in error.metadata.get("detail", "") for words in _LASTING):
        return None
    # Who took an upload over is at work: let it.
    is_taken_over = isinstance(error, errors.UploadInterrupted)
    first_s = _FIRST_PAUSE_S * (10 if is_taken_over else 1)
    backoff_s: float = min(_LONGEST_PAUSE_S, first_s * 2 ** min(attempt - 1, 30))
    # Callers do not all come at the same moment.
    backoff_s *= 0.5 + 0.5 * random.random()  # noqa: S311
    if error.retry_after_s is not None:
        # Later than the daemon asked, never earlier, and never at once: a daemon may send 0.
        return max(0.0, error.retry_after_s) + backoff_s
    return backoff_s if is_taken_over or error.code.name == "UNAVAILABLE" else None


def parsed(kind: type[M], wire: bytes) -> M:
    """Return a message. Raise UnexpectedAnswer for bytes that are none."""
    try:
        return kind.FromString(wire)
    except DecodeError as error:
        raise errors.UnexpectedAnswer(
            f"cannot read the daemon's answer: {quoted(str(error))}"
        ) from None


def _elements(message: Message, limit: int) -> int:
    """Count the elements of all lists and maps in a message; stop once there are too many."""
    count = 0
    for field, value in message.ListFields():
        count += len(value) if field.is_repeated else 0
        inner = [value] if not field.is_repeated else value
        for each in inner.values() if isinstance(inner, Mapping) else inner:
            if count > limit or not isinstance(each, Message):
                break
            count += _elements(each, limit)
    return count


def error_from_rpc(failure: Any, address: str, timeout_s: float) -> errors.WasmkilnError:
    """Return the exception for a grpc.RpcError of either API, sync or aio. Raise nothing.

    `address` and `timeout_s` (of the whole call, in seconds) appear in messages.
    """
    from google.rpc import error_details_pb2 as details
    from google.rpc import status_pb2

    code, text = failure.code(), failure.details() or ""
    told: dict[str, Any] = {"code": code, "reason": "", "metadata": {}}
    info, retry, bad = details.ErrorInfo(), details.RetryInfo(), details.BadRequest()
    with suppress(DecodeError):  # damaged, or of another server: code and text still count
        # A tuple: in older versions of grpcio, dict() cannot read that of asyncio.
        trailers = dict(tuple(failure.trailing_metadata() or ()))
        sent = trailers.get("grpc-status-details-bin", b"")
        for item in status_pb2.Status.FromString(sent).details:
            if item.Unpack(info) and info.domain == "wasmkiln":
                told["reason"], told["metadata"] = info.reason, dict(info.metadata)
            elif item.Unpack(retry):
                told["retry_after_s"] = max(0.0, seconds(retry.retry_delay))
            elif item.Unpack(bad):
                told["field_violations"] = [
                    errors.FieldViolation(each.field, each.description)
                    for each in bad.field_violations
                ]
    kind = errors.BY_REASON.get(told["reason"], errors.WasmkilnError)
    if not told["reason"]:
        kind, text, told["metadata"] = _without_reason(code.name, text, address, timeout_s)
        told["reason"] = kind.REASON
        if kind is errors.ConnectionFailed:
            del told["code"]  # of a stream that was cut: the class says UNAVAILABLE
    elif kind is errors.CredentialsMissing:  # the daemon speaks to every kind of client
        text += " (in wasmkiln: token_file or WASMKILN_TOKEN_FILE; cert_file and key_file)"
    return kind(text or told["reason"] or code.name, **told)


def _without_reason(
    code: str, text: str, address: str, timeout_s: float
) -> tuple[type[errors.WasmkilnError], str, dict[str, str]]:
    """Return class, message and metadata for what gRPC itself reports."""
    metadata = {"address": address, "detail": text}
    if code in ("CANCELLED", "INTERNAL", "UNKNOWN") and _CUT.fullmatch(text):
        return errors.ConnectionFailed, f"the answer of {address} was cut ({text})", metadata
    if code == "UNAVAILABLE":
        cause = next((f" ({means})" for words, means in _CAUSES.items() if words in text), "")
        message = f"no daemon answers at {address}{cause}: start one with `wasmkilnd serve`, "
        return errors.ConnectionFailed, message + "or set WASMKILN_ADDRESS", metadata
    if code == "DEADLINE_EXCEEDED":
        metadata = {"address": address, "timeout_s": f"{timeout_s:g}"}
        message = f"no answer from {address} within {timeout_s:g} s"
        return errors.DeadlineExceeded, message, metadata
    if code == "UNIMPLEMENTED":
        message = (
            f"the daemon at {address} does not serve this call there: it is older, or serves "
            "calls of operators only at its operator_listen"
        )
        return errors.WasmkilnError, message, metadata
    if code == "RESOURCE_EXHAUSTED" and (too_large := _MESSAGE_TOO_LARGE.search(text)):
        metadata = {"size_bytes": too_large[1], "limit_bytes": too_large[2]} if too_large[1] else {}
        message = f"the module is larger than the daemon accepts ({text})"
        return errors.ModuleTooLarge, message, metadata
    if code == "RESOURCE_EXHAUSTED" and "received metadata size exceeds" in text:
        message = f"cannot read the answer of {address}: its metadata is above gRPC's limit"
        return errors.UnexpectedAnswer, message, metadata
    return errors.WasmkilnError, text, {}


def traced() -> Metadata:
    """Return `traceparent` and `tracestate` of the span that is active here; nothing without one.

    A program without OpenTelemetry pays for a look into a dictionary.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
