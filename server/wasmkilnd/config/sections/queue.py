"""What is compiled: how large, with which engine, how many at once, how many wait."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    GIB,
    LIVE,
    MIB,
    Count,
    EngineName,
    LowerCase,
    Size,
)


class QueueSettings(BaseModel):
    """What is compiled: how large, with which engine, how many at once, how many wait."""

    max_module_bytes: Size = Field(
        default=5 * MIB,
        gt=0,
        le=GIB,
        description="The largest module that is accepted.",
        json_schema_extra=LIVE,
    )
    max_artifact_bytes: Size = Field(
        default=256 * MIB,
        gt=0,
        description="The largest artifact that is kept and sent.",
        json_schema_extra=LIVE,
    )
    default_engine: EngineName = Field(
        default="",
        description="The engine of requests that name none: an id such as wasmtime-50.0.1, or a"
        " name for its newest installed version. Empty: wasmer where it is installed.",
    )
    workers: Count = Field(
        default=0,
        ge=0,
        le=1024,
        description="Compilations that run at once, for each engine; 0 for as many as there are"
        " CPUs.",
    )
    queue_length: Count = Field(
        default=256,
        gt=0,
        le=1_000_000,
        description="Calls that may wait for a worker, for each engine; more are refused.",
        json_schema_extra=LIVE,
    )
    queue_bytes: Size = Field(
        default=256 * MIB,
        gt=0,
        description="Modules that may wait for a worker, in bytes, for each engine; more are"
        " refused. All work under way may hold twice that.",
        json_schema_extra=LIVE,
    )
    abandoned_compiles: Annotated[Literal["finish", "yield", "kill"], LowerCase] = Field(
        default="finish",
        description="What becomes of a compilation that runs when its last caller has gone:"
        " finish it for the cache, let it yield to others that wait for its worker, or kill"
        " it. One that still waits is always dropped.",
        json_schema_extra=LIVE,
    )
