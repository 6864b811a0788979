"""The span of a call, and the spans of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from wasmkilnd.errors import Reason

_KEY = "wasmkiln-call"
_CARRIED = "wasmkiln-carried"
_CARRIER = ("traceparent", "tracestate")
# W3C asks for at least 512. Each span of a call holds it until it is sent.
_LONGEST_STATE = 512
_W3C = TraceContextTextMapPropagator()
# The gRPC codes that are a server's fault, by OpenTelemetry's conventions.
_FAULTS = {"UNKNOWN", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED"}

Value = str | int | float | None


class CallSpan:
    """Implements CallTrace."""

    def __init__(self, tracer: Tracer, span: Span, parent: Context) -> None:
        self._tracer = tracer
        self._span = span
        self._below = trace.set_span_in_context(span, parent)
        self._from_caller = trace.get_current_span(parent).get_span_context().is_valid
        self.ended_ns: int | None = None

    @property
    def trace_id(self) -> str:
        """See CallTrace: the caller's, or one that is sent to the collector."""
        if self._from_caller or self._span.is_recording():
            return trace.format_trace_id(self._span.get_span_context().trace_id)
        return ""

    @property
    def is_recorded(self) -> bool:
        """Whether the collector gets it."""
        return self._span.get_span_context().trace_flags.sampled

    def includes(self, began_ns: int) -> bool:
        """Return whether a step that began then belongs to the call."""
        return self.ended_ns is None or began_ns < self.ended_ns

    def step(self, name: str, began_ns: int, about: Mapping[str, Value], failed: str = "") -> None:
        """Add a step that ends now; ``failed`` says how, if it did."""
        if self.is_recorded:
            span = self._tracer.start_span(name, self._below, start_time=began_ns)
            span.set_attributes(_attributes(about))
            if failed:
                span.set_status(Status(StatusCode.ERROR, failed))
            span.end()

    def end(self, code: str, reason: str, about: Mapping[str, Value]) -> None:
        """See CallTrace."""
        self.ended_ns = time.time_ns()
        if not self._span.is_recording():
            return
        self._span.set_attributes(
            {
                "rpc.grpc.status_code": _NUMBERS.get(code, 2),
                **_attributes({**about, "reason": reason}),
            }
        )
        if code in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, reason or code))
        self._span.end(self.ended_ns)


class Step:
    """A step of the call that the running task works for; of no call, it records nothing."""

    def __init__(self, name: str, **about: Value) -> None:
        """Begin it now."""
        self._call = current()
        self._name = name
        self._about = about
        self._began_ns = time.time_ns()

    def end(self, outcome: str, **about: Value) -> None:
        """End it now."""
        if self._call:
            about = {**self._about, "outcome": outcome, **about}
            self._call.step(self._name, self._began_ns, about)

    def fail(self, failure: BaseException) -> None:
        """End it now, with what ended it."""
        if self._call:
            reason = getattr(failure, "reason", None)
            outcome = reason.value.lower() if isinstance(reason, Reason) else "cancelled"
            about = {**self._about, "outcome": outcome}
            failed = "" if outcome == "cancelled" else outcome
            self._call.step(self._name, self._began_ns, about, failed)


def begin(tracer: Tracer, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan:
    """Begin the span of a call that the running task answers."""
    carrier = {
        name: value for name, value in metadata if name in _CARRIER and isinstance(value, str)
    }
    if len(carrier.get("tracestate", "")) > _LONGEST_STATE:
        del carrier["tracestate"]
    parent = _W3C.extract(carrier, Context())
    service, _, name = method.removeprefix("/").partition("/")
    span = tracer.start_span(
        method.removeprefix("/"),
        parent,
        SpanKind.SERVER,
        {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
    )
    call = CallSpan(tracer, span, parent)
    # The task is the call's own, and its context ends with it.
    context.attach(context.set_value(_KEY, call))
    return call


def current() -> CallSpan | None:
    """Return the call that the running task works for, if that has not ended."""
    call = _of_context()
    return call if call and call.ended_ns is None else None


def lookup(name: str, seconds: float, about: Mapping[str, Value], failed: str = "") -> None:
    """Add a step that took ``seconds`` and ends now to the call of the running task."""
    began_ns = time.time_ns() - int(seconds * 1e9)
    if (call := _of_context()) and (_is_carried() or call.includes(began_ns)):
        call.step(name, began_ns, about, failed)


@contextmanager
def carried(call: CallSpan | None) -> Iterator[None]:
    """Work for ``call`` inside this context, whether or not it has ended."""
    inside = context.set_value(_KEY, call, context.set_value(_CARRIED, True))
    token = context.attach(inside)
    try:
        yield
    finally:
        context.detach(token)


def current_trace_id() -> str:
    """Return the id of the trace that a line of the log belongs to; empty for none."""
    call = current()
    return call.trace_id if call else ""


def _is_carried() -> bool:
    return bool(context.get_value(_CARRIED))


def _of_context() -> CallSpan | None:
    call = context.get_value(_KEY)
    return call if isinstance(call, CallSpan) else None


def _attributes(about: Mapping[str, Value]) -> dict[str, str | int | float]:
    return {f"wasmkiln.{name}": value for name, value in about.items() if value not in (None, "")}


# https://grpc.io/docs/guides/status-codes/
_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
_NUMBERS = {name: number for number, name in enumerate(_CODES)}
