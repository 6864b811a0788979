"""Where traces of calls go."""

from __future__ import annotations

from pydantic import BaseModel, Field

from wasmkilnd.config.values.collector import Collector
from wasmkilnd.config.values.types import LIVE, OptionalFile, Ratio


class TracingSettings(BaseModel):
    """Where traces of calls go."""

    trace_endpoint: Collector = Field(
        default="",
        description="The collector of OpenTelemetry that gets traces of calls by OTLP over gRPC:"
        " http://host:port or https://host:port, which is mostly port 4317. Empty for no traces."
        " Needs wasmkiln[trace].",
    )
    trace_sample_ratio: Ratio = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Which part of the traces that begin in this daemon is sent, from 0 to 1. A"
        " call that brings a traceparent along is sent if its caller says so there.",
        json_schema_extra=LIVE,
    )
    trace_headers_file: OptionalFile = Field(
        default="",
        description="A file with what the collector wants to know of a sender, such as a token:"
        " a line `name: value` for each. Read at the start.",
    )
    trace_ca_file: OptionalFile = Field(
        default="",
        description="A PEM file of the certificate authorities to check the collector's"
        " certificate against; empty for those that come with gRPC.",
    )
