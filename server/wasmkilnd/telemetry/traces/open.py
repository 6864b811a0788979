"""Opens and closes the traces of a daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)

from wasmkilnd.ports import CallTrace, Engines, Fleet, Recorder
from wasmkilnd.telemetry.traces import spans, steps
from wasmkilnd.telemetry.traces.sending import Collector

QUEUE = 4096
"""How many finished spans wait to be sent; of a call with a compile there are about ten."""
FLUSH_S = 2.0
_EVERY_MS = 1000
_BATCH = 512


class Traces:
    """Implements Tracing."""

    def __init__(
        self, exporter: SpanExporter, version: str, sample_ratio: Callable[[], float]
    ) -> None:
        """Send to ``exporter`` a part of the traces that begin here: what ``sample_ratio`` returns.

        Of others, send those that their callers send. OTEL_SERVICE_NAME and
        OTEL_RESOURCE_ATTRIBUTES say more about this daemon.
        """
        own = Resource({SERVICE_NAME: "wasmkilnd", SERVICE_VERSION: version})
        self._provider = TracerProvider(
            sampler=ParentBased(RatioOfNow(sample_ratio)),
            resource=own.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE,
            schedule_delay_millis=_EVERY_MS,
            max_export_batch_size=_BATCH,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("wasmkilnd", version)

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallTrace:
        """See Tracing."""
        return spans.begin(self._tracer, method, metadata)

    def recorder(self) -> Recorder:
        """See Tracing."""
        return steps.TracedTiers()

    def engines(self, engines: Engines) -> Engines:
        """See Tracing."""
        return steps.TracedEngines(engines)

    def fleet(self, fleet: Fleet) -> Fleet:
        """See Tracing."""
        return steps.TracedFleet(fleet)

    def carry(self) -> AbstractContextManager[None]:
        """See Tracing."""
        return spans.carried(spans.current())

    def close(self) -> None:
        """Send what waits, for at most FLUSH_S, and give up the rest. Blocks that long."""
        # The library waits for its own thread without a limit when the collector hangs.
        flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


class RatioOfNow(Sampler):
    """Samples a part of the traces; which part, may change while the daemon runs."""

    def __init__(self, ratio: Callable[[], float]) -> None:
        self._ratio = ratio
        self._sampler = TraceIdRatioBased(ratio())

    def should_sample(self, *about: Any, **more: Any) -> SamplingResult:
        """See Sampler."""
        if self._sampler.rate != self._ratio():
            self._sampler = TraceIdRatioBased(self._ratio())
        return self._sampler.should_sample(*about, **more)

    def get_description(self) -> str:
        """See Sampler."""
        return self._sampler.get_description()


def open_traces(
    endpoint: str,
    version: str,
    sample_ratio: Callable[[], float],
    headers: Mapping[str, str],
    ca_pem: bytes | None,
) -> Traces:
    """Open traces that go to the collector at ``endpoint``, a URL."""
    return Traces(Collector(endpoint, headers, ca_pem), version, sample_ratio)
