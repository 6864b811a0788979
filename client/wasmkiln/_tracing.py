"""Hands the caller's span on to the daemon, if the caller uses OpenTelemetry."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wasmkiln.access.token import Metadata


def trace_metadata() -> Metadata:
    """Return `traceparent` and `tracestate` of the span that is active here; nothing without one.

    A program without OpenTelemetry pays for a look into a dictionary.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
