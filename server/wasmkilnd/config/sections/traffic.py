"""What callers may have under way, so that none is in another's way."""

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
    """What callers may have under way, so that none is in another's way."""

    max_calls: Count = Field(
        default=2048,
        gt=0,
        le=1_000_000,
        description="Calls that may be under way, each waiting, receiving or being answered. No"
        " caller gets more of them than it leaves to others.",
        json_schema_extra=LIVE,
    )
    max_connections: Count = Field(
        default=1024,
        gt=0,
        le=1_000_000,
        description="Connections, for each address of listen; more are closed at once. An eighth"
        " is kept free: idle ones are closed, and then those of the host that has most.",
    )
    max_streams: Count = Field(
        default=256, gt=0, le=100_000, description="Calls under way on one connection."
    )
    receive_bytes: Size = Field(
        default=512 * MIB,
        ge=MIB,
        description="Memory for requests that arrive or are being looked at. One that arrives"
        " slowly counts as large as a message may be.",
        json_schema_extra=LIVE,
    )
    send_bytes: Size = Field(
        default=128 * MIB,
        ge=8 * MIB,
        description="Memory for copies of answers that their callers have not read yet.",
        json_schema_extra=LIVE,
    )
    send_pinned_bytes: Size = Field(
        default=512 * MIB,
        gt=0,
        description="Artifacts that may be on their way at once, in bytes, each counted once,"
        " beside those in the memory tier; they stay in memory until they are sent. No caller gets"
        " more of it than it leaves to others.",
        json_schema_extra=LIVE,
    )
    caller_timeout_s: Seconds = Field(
        default=60.0,
        gt=0,
        description="How long a caller may take to send its request, and how long it may take"
        " nothing of its answer, before its call is ended.",
        json_schema_extra=LIVE,
    )
