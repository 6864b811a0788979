"""Spans of OpenTelemetry: what one call waited for, and what it cost, seen from the service above.

A call belongs to the trace that its ``traceparent`` names (W3C Trace Context), else it begins
one. Its span has the attributes ``rpc.*``; the steps below it are ``lookup TIER``, ``store TIER``,
``queue``, ``lease``, ``wait for another daemon``, ``compile`` and ``validate``. Their attributes
are under ``wasmkiln.``: tier, outcome, engine, sizes, origin, reason. No digest, name, address,
token or message is among them: a collector may be read by more people than the log.
The line of a call in the log has the ``trace_id``, and so does all else that is logged for it.

``step`` makes a step of the lines inside it. Which call a task works for is in ``CALL``, which
asyncio hands to the tasks that a task starts; nothing but traces and the log reads it. A step
counts if it begins before its call ends: so what a task does later, for others, is in no trace.
Writes behind a call are its own all the same (``carried``).

Where spans go, and which, is said by OpenTelemetry's own variables, which its SDK reads.

Promises: without a variable of ``ENDPOINTS``, nothing of OpenTelemetry is loaded, and no call is
traced. No span makes a call wait or fail. Finished spans wait in a queue of ``QUEUE`` spans, from
which a thread sends them; if the collector does not take them, the oldest are dropped, and the log
says so once. At the end of the daemon, what waits has ``FLUSH_S`` seconds to leave.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
import structlog

from wasmkilnd.errors import WasmkilnError
from wasmkilnd.settings import mask
from wasmkilnd.telemetry import logs

Value: TypeAlias = str | int | float | None

# Of a call with a compile there are about ten spans.
QUEUE = 4096
FLUSH_S, _EVERY_MS = 2.0, 1000
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The variables that name a collector, and so switch traces on."""
# Of a tracestate, W3C asks for at least 512. Each span of a call holds it until it is sent.
_BROUGHT, _LONGEST = ("traceparent", "tracestate"), 512
# The gRPC codes that are a server's fault, by OpenTelemetry's conventions.
_FAULTS = {"UNKNOWN", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED"}

# Outcomes of steps in a tier that are no failure of the tier.
_FINE = {"hit", "miss", "ok", "too_large"}

log = structlog.get_logger("wasmkilnd.traces")


class TracingUnusable(Exception):  # noqa: N818 - a state, shown to the operator
    """Traces are switched on, and cannot be sent; the message says why and what to do."""


class CallTrace:
    """The trace that one call belongs to, and the span of the call in it."""

    def __init__(self, tracer: Any, span: Any, below: Any) -> None:
        self._tracer, self._span, self._below = tracer, span, below
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        # Whether the collector gets it: a caller may trace its call without that.
        self._is_sent = span.is_recording()
        self.ended_ns = 0

    def step(self, name: str, seconds: float, about: Mapping[str, Value], failed: str = "") -> None:
        """Add a step that took ``seconds`` and ends now; ``failed`` says how, if it did."""
        began_ns = time.time_ns() - int(seconds * 1e9)
        if self._is_sent and (not self.ended_ns or began_ns < self.ended_ns):
            _end(self._tracer.start_span(name, self._below, start_time=began_ns), about, failed)

    def end(self, code: str, reason: str, about: Mapping[str, Value]) -> None:
        """Note that the call has ended with a gRPC code; what is None or empty is left out."""
        self.ended_ns = time.time_ns()
        self._span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        _end(self._span, {**about, "reason": reason}, (reason or code) if code in _FAULTS else "")


def _end(span: Any, about: Mapping[str, Value], failed: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attributes({f"wasmkiln.{k}": x for k, x in about.items() if x not in (None, "")})
    if failed:
        span.set_status(StatusCode.ERROR, failed)
    span.end()


CALL: ContextVar[CallTrace | None] = ContextVar("wasmkiln-call", default=None)


@contextmanager
def step(name: str, **about: Value) -> Iterator[dict[str, Value]]:
    """Make a step of what happens inside, if the running task works for a call that is traced.

    Yield its attributes, to be completed: ``outcome``, unless it raises.
    """
    began_s, failed = time.perf_counter(), ""
    try:
        yield about
    except BaseException as failure:
        failed = failure.reason.value.lower() if isinstance(failure, WasmkilnError) else ""
        about["outcome"] = failed or "cancelled"
        raise
    finally:
        if call := CALL.get():
            call.step(name, time.perf_counter() - began_s, about, failed)


def tier_step(did: str, tier: str, outcome: str, seconds: float, **about: Value) -> None:
    """Add a step in a tier, which ended now, if the running task works for a traced call."""
    if call := CALL.get():
        failed = "" if outcome in _FINE else outcome
        call.step(f"{did} {tier}", seconds, {"tier": tier, "outcome": outcome, **about}, failed)


def carried() -> CallTrace | None:
    """Return what ``CALL`` has to be for work that the running task leaves to another."""
    call = CALL.get()
    # A copy: that the call ends does not end it.
    return copy.copy(call) if call and not call.ended_ns else None


def of_line() -> dict[str, str]:
    """Return what a line of the log says of the trace that it belongs to."""
    call = CALL.get()
    return {"trace_id": call.trace_id} if call and not call.ended_ns else {}


class Tracing:
    """Follows calls through the daemon. Without it the daemon serves the same."""

    def __init__(self, exporter: Any, version: str) -> None:
        """Send to ``exporter`` what the sampler of OTEL_TRACES_SAMPLER chooses.

        OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say more about this daemon.
        """
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider, export
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._w3c = TraceContextTextMapPropagator()
        own = Resource({"service.name": "wasmkilnd", "service.version": version})
        named = own.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(exporter, QUEUE, _EVERY_MS))
        self._tracer = self._provider.get_tracer("wasmkilnd", version)

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallTrace | None:
        """Begin the trace of a call that the running task answers, or go on with its caller's.

        Return None for one that begins here and is not sampled.
        """
        from opentelemetry import context, trace

        brought = {name: x for name, x in metadata if name in _BROUGHT and len(x) <= _LONGEST}
        above = self._w3c.extract(brought, context.Context())
        service, _, name = method[1:].partition("/")
        about = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(method[1:], above, trace.SpanKind.SERVER, about)
        if not (above or span.is_recording()):
            return None
        call = CallTrace(self._tracer, span, trace.set_span_in_context(span, above))
        # The task is the call's own, and its context ends with it.
        CALL.set(call)
        return call

    def close(self) -> None:
        """Send what waits, for at most FLUSH_S, and give up the rest. Blocks that long."""
        # The library waits for its own thread without a limit when the collector hangs.
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


class Collector(logging.Handler):
    """Sends spans, and tells the log once that it cannot, and once that it can.

    Let OpenTelemetry log nothing by itself: it would at each attempt, and show headers.
    """

    def __init__(self) -> None:
        """Send where the variables of OpenTelemetry say. Raises TracingUnusable."""
        super().__init__(logging.WARNING)
        self._reached, self._why = True, ""
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:], logger.propagate = [self], False
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            self._exporter = OTLPSpanExporter()
        except ImportError:
            raise TracingUnusable(
                f"cannot send traces to the collector of {ENDPOINTS[1]}: OpenTelemetry is not"
                " installed: pip install 'wasmkiln[server,trace]'"
            ) from None
        except Exception as failure:  # the library has many, for each variable
            raise TracingUnusable(
                f"cannot send traces: one of the variables OTEL_EXPORTER_OTLP_*: {failure}"
            ) from None
        if self._why:  # It goes on without what it cannot use. What it says of headers quotes them.
            why = "OTEL_EXPORTER_OTLP_HEADERS" if "eader" in self._why else self._why
            raise TracingUnusable(f"cannot send traces: OpenTelemetry cannot use {why}")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what OpenTelemetry would log."""
        self._why = record.getMessage()

    def export(self, spans: Any) -> Any:
        """Send ``spans``; they are lost if the collector does not take them."""
        result = self._exporter.export(spans)
        before, self._reached = self._reached, result.name == "SUCCESS"
        if before and not self._reached:
            event = "cannot send traces: the collector does not take them; calls go on as usual"
            log.warning(event, endpoint=mask(_endpoint()), cause=self._why)
        elif self._reached and not before:
            log.info("the collector takes traces again", endpoint=mask(_endpoint()))
        return result

    def shutdown(self) -> None:
        """Give up what is under way."""
        self._exporter.shutdown()


def _endpoint() -> str:
    return next(filter(None, map(os.environ.get, ENDPOINTS)), "")


def open_collector() -> Collector | None:
    """Return what sends spans; None where no variable names a collector.

    Raises TracingUnusable.
    """
    return Collector() if _endpoint() else None


def open_tracing(version: str) -> Tracing | None:
    """Return the traces; None if they are switched off. May block. Raises TracingUnusable."""
    if (collector := open_collector()) is None:
        return None
    logs.context = of_line
    try:
        return Tracing(collector, version)
    except ValueError as failure:
        raise TracingUnusable(
            f"cannot send traces: one of the variables OTEL_*: {failure}"
        ) from None
