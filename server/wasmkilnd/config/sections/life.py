"""How the daemon ends, and what it writes to its log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    LIVE,
    LowerCase,
    Seconds,
)


class LifeSettings(BaseModel):
    """How the daemon ends, and what it writes to its log."""

    shutdown_grace_s: Seconds = Field(
        default=30.0,
        ge=0,
        description="How long calls in progress may continue after the daemon is told to stop.",
        json_schema_extra=LIVE,
    )
    log_format: Annotated[Literal["auto", "text", "json"], LowerCase] = Field(
        default="auto",
        description="How log lines look: text, json, or auto for text on a terminal and json"
        " elsewhere.",
        json_schema_extra=LIVE,
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], LowerCase] = Field(
        default="info",
        description="The lowest level of log lines to write.",
        json_schema_extra=LIVE,
    )
    banner: Annotated[Literal["auto", "always", "never"], LowerCase] = Field(
        default="auto",
        description="Whether the daemon prints its addresses, engines and tiers on standard output"
        " when it is ready. auto does so on a terminal and where log lines are text: nothing gets"
        " between lines of JSON.",
    )
