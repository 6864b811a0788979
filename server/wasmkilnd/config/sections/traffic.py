"""Limits on calls in progress, so that no caller can crowd out the others."""

from __future__ import annotations

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    LIVE,
    MIB,
    Count,
    Seconds,
    Size,
)


class TrafficSettings(BaseModel):
    """Limits on calls in progress, so that no caller can crowd out the others."""

    max_calls: Count = Field(
        default=2048,
        gt=0,
        le=1_000_000,
        description="Calls in progress, in any phase. No caller may have more of them than it"
        " leaves to others.",
        json_schema_extra=LIVE,
    )
    max_connections: Count = Field(
        default=1024,
        gt=0,
        le=1_000_000,
        description="Connections, for each address of listen; the daemon closes others at once.",
    )
    max_streams: Count = Field(
        default=256, gt=0, le=100_000, description="Calls in progress on one connection."
    )
    receive_bytes: Size = Field(
        default=512 * MIB,
        ge=MIB,
        description="Memory for requests: half for those that are being used, half for those that"
        " arrive slowly, each of which counts as the largest possible message.",
        json_schema_extra=LIVE,
    )
    send_bytes: Size = Field(
        default=128 * MIB,
        ge=8 * MIB,
        description="Memory for copies of answers that callers have not read yet.",
        json_schema_extra=LIVE,
    )
    send_pinned_bytes: Size = Field(
        default=512 * MIB,
        gt=0,
        description="Bytes of artifacts that are being sent, besides those in the memory tier;"
        " each counts once, and the daemon refuses to send one more than that. No caller may have"
        " more of it than it leaves to others.",
        json_schema_extra=LIVE,
    )
    caller_timeout_s: Seconds = Field(
        default=60.0,
        gt=0,
        description="How long a caller may take to send its request, and how long it may read"
        " nothing of its answer; for a whole artifact it has ten times as long. The daemon then"
        " ends the call.",
        json_schema_extra=LIVE,
    )
