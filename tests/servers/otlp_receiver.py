"""A collector of a few lines: OTLP over HTTP, on a real port.

No collector is among the packages that this system can install; this one keeps each span that
it gets, as the protocol says it, and refuses senders without its token.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb

from tests.authority import Pair
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


def tls_of(pair: Pair, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return how a collector with this certificate speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert_file, pair.key_file)
    context.maximum_version = newest
    return context


class OtlpReceiver:
    """Keeps spans."""

    def __init__(self, token: str = "", tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                known = not token or self.headers["Authorization"] == f"Bearer {token}"
                if known and self.path == "/v1/traces":
                    receiver._take(pb.ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if known else 401)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _take(self, request: Any) -> None:
        for resource in request.resource_spans:
            self.resource = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += map(_span, scope.spans)

    def of(self, trace_id: str, name: str, count: int = 1) -> list[Span]:
        """Wait for ``count`` spans of a trace, and return them."""

        def found() -> list[Span]:
            return [each for each in self.spans if (each.trace_id, each.name) == (trace_id, name)]

        eventually(lambda: len(found()) >= count, f"{count} spans {name} of {trace_id}")
        return found()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


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
