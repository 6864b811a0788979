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

They go by OTLP over HTTP: gRPC would bind the collector to the listener's TLS, as it knows one list
of cipher suites for a whole process.

Promises: unless a variable names an endpoint, nothing of OpenTelemetry is loaded, and no call is
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
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import structlog

from wasmkilnd.errors import CannotUse, WasmkilnError
from wasmkilnd.settings import mask
from wasmkilnd.telemetry import logs

Value: TypeAlias = str | int | float | None

# Of a call with a compile there are about ten spans.
QUEUE = 4096
FLUSH_S, _EVERY_MS = 2.0, 1000
# Of a tracestate, W3C asks for at least 512. Each span of a call holds it until it is sent.
_BROUGHT, _LONGEST = ("traceparent", "tracestate"), 512
# The gRPC codes that are a server's fault, by OpenTelemetry's conventions.
_FAULTS = {"UNKNOWN", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED"}

# Outcomes of steps in a tier that are no failure of the tier.
_FINE = {"hit", "miss", "ok", "too_large"}

log = structlog.get_logger("wasmkilnd.traces")


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
    """Add a step in a tier that ends now, if the running task works for a call that is traced."""
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
        if method.startswith("/v1"):
            about = {"http.route": method}
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
        """Send where the variables of OpenTelemetry say. Raises what it has for a wrong one."""
        super().__init__(logging.WARNING)
        self._reached, self._why = True, ""
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:], logger.propagate = [self], False
        logger.setLevel(logging.WARNING)  # Whatever the daemon's own level is.
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        if (protocol := _variable("PROTOCOL")) not in ("", "http/protobuf"):
            raise ValueError(
                f"the protocol is http/protobuf, as a rule at port 4318, not {protocol}"
            )
        for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
            Path(_variable(name) or os.devnull).read_bytes()
        session = requests.Session()
        # Else ~/.netrc goes before HEADERS, and REQUESTS_CA_BUNDLE before CERTIFICATE.
        session.trust_env, session.stream = False, True
        session.proxies = requests.utils.get_environ_proxies(_variable("ENDPOINT"))
        session.hooks["response"] = [_answered]
        self._exporter: Any = OTLPSpanExporter(session=session)
        if self._why:  # It goes on without what it cannot use. What it says of headers quotes them.
            raise ValueError("OTEL_EXPORTER_OTLP_HEADERS" if "eader" in self._why else self._why)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what OpenTelemetry would log first of an attempt: what follows says less."""
        self._why = self._why or record.getMessage()

    def export(self, spans: Any) -> Any:
        """Send ``spans``; they are lost if the collector does not take them."""
        self._why = ""
        result = self._exporter.export(spans)
        before, self._reached = self._reached, result.name == "SUCCESS"
        if before and not self._reached:
            event = "cannot send traces: the collector does not take them; calls go on as usual"
            log.warning(event, endpoint=mask(_variable("ENDPOINT")), cause=self._why)
        elif self._reached and not before:
            log.info("the collector takes traces again", endpoint=mask(_variable("ENDPOINT")))
        return result

    def shutdown(self) -> None:
        """Give up what is under way."""
        self._exporter.shutdown()


def _answered(response: Any, **_: Any) -> None:
    """Read no more of an answer; raise for a redirect, which the library takes for success."""
    response.close()
    if 300 <= response.status_code < 400:
        raise ValueError(f"it answers with a redirect ({response.status_code})")


def _variable(name: str) -> str:
    """Return OpenTelemetry's variable of this name for the exporter, that of traces first."""
    own, common = f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    return os.environ.get(own) or os.environ.get(common, "")


def open_tracing(version: str) -> Tracing | None:
    """Return the traces; None if they are switched off. May block. Raises CannotUse."""
    if not _variable("ENDPOINT"):
        return None
    try:
        tracing = Tracing(Collector(), version)
    except ImportError:
        raise CannotUse(
            "cannot send traces to the collector of OTEL_EXPORTER_OTLP_ENDPOINT: OpenTelemetry is"
            " not installed: pip install 'wasmkiln[server,trace]'"
        ) from None
    except Exception as failure:  # the library has many, for each variable
        why = f"cannot send traces: one of the variables OTEL_*: {failure}"
        raise CannotUse(why) from None
    logs.context = of_line
    return tracing
