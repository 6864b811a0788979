"""Sends finished spans to the collector, from a thread, and tells the log once if it cannot."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import grpc
import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = structlog.get_logger("wasmkilnd.traces")

_TIMEOUT_S = 5.0


class Collector(SpanExporter):
    """Sends to a collector by OTLP over gRPC. For one thread at a time."""

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str],
        ca_pem: bytes | None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """``endpoint`` is a URL; ``ca_pem`` are the CAs of its certificate, None for gRPC's own."""
        secure = endpoint.startswith("https://")
        self._endpoint = endpoint
        self._why = _quieted()
        self._reached = True
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=not secure,
            credentials=grpc.ssl_channel_credentials(ca_pem) if secure else None,
            headers=tuple(headers.items()),
            timeout=timeout_s,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``; they are lost if the collector does not take them."""
        result = self._exporter.export(spans)
        reached = result is SpanExportResult.SUCCESS
        if reached != self._reached:
            self._reached = reached
            if reached:
                log.info("the collector takes traces again", endpoint=self._endpoint)
            else:
                log.warning(
                    "cannot send traces: the collector does not take them; calls go on as usual",
                    endpoint=self._endpoint,
                    cause=self._why.last,
                )
        return result

    def shutdown(self) -> None:
        """Give up what is under way."""
        self._exporter.shutdown()


class _Last(logging.Handler):
    """Keeps the last message."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message; never raise."""
        try:
            self.last = record.getMessage()
        except Exception:  # arguments that do not fit the library's own format
            self.last = str(record.msg)


def _quieted() -> _Last:
    """Let OpenTelemetry log nothing by itself: it would at each attempt. Return what it would."""
    kept = _Last(logging.WARNING)
    logger = logging.getLogger("opentelemetry")
    logger.handlers[:] = [kept]
    logger.propagate = False
    return kept
