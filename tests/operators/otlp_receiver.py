"""A collector of a few lines: OpenTelemetry's own service of OTLP over gRPC, on a real port.

No collector is among the packages that this system can install; this one keeps each span that
it gets, as the protocol says it, and refuses senders without its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from tests.e2e.processes import eventually


@dataclass(frozen=True)
class Span:
    """What a collector knows of a span."""

    trace_id: str
    id: str
    parent: str
    name: str
    about: Mapping[str, Any]
    """Its attributes."""
    failed: bool
    began_ns: int
    ended_ns: int


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans."""

    def __init__(self, token: str, tls: grpc.ServerCredentials, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self._token = token
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add(self, self._server)
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", tls)
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Take spans."""
        if ("authorization", f"Bearer {self._token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        for resource in request.resource_spans:
            self.resource = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += map(_span, scope.spans)
        return pb.ExportTraceServiceResponse()

    def of(self, trace_id: str, name: str, count: int = 1) -> list[Span]:
        """Wait for ``count`` spans of a trace, and return them."""

        def found() -> list[Span]:
            return [each for each in self.spans if (each.trace_id, each.name) == (trace_id, name)]

        eventually(lambda: len(found()) >= count, f"{count} spans {name} of {trace_id}")
        return found()

    def stop(self) -> None:
        """Close the port."""
        self._server.stop(None).wait()


def _span(span: Any) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        _values(span.attributes),
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
