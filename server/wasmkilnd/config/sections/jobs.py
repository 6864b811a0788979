"""What one compilation may use and reach, and what follows when it breaks a limit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    LIVE,
    Count,
    LowerCase,
    Seconds,
    Size,
)


class JobSettings(BaseModel):
    """What one compilation may use and reach, and what follows when it breaks a limit."""

    compile_timeout_s: Seconds = Field(
        default=30.0,
        gt=0,
        description="How long one compilation may take before the daemon kills it.",
        json_schema_extra=LIVE,
    )
    compile_cpu_s: Seconds = Field(
        default=0.0,
        ge=0,
        description="CPU time that all threads of one compilation may use together before the"
        " kernel kills it; 0 for compile_timeout_s times the number of CPUs.",
        json_schema_extra=LIVE,
    )
    compile_memory_bytes: Size = Field(
        default=0,
        ge=0,
        description="Memory that one compilation may use before it is killed; 0 for 4 GiB, or for"
        " half of the machine's or control group's memory if that is less.",
        json_schema_extra=LIVE,
    )
    quarantine_s: Seconds = Field(
        default=600.0,
        ge=0,
        description="How long the daemon refuses a module for an engine that it crashed, or with"
        " which it reached its time or memory limit. Each further failure doubles the time, up to a"
        " day. With 0 the daemon refuses nothing.",
        json_schema_extra=LIVE,
    )
    isolation: Annotated[Literal["strict", "required", "best-effort"], LowerCase] = Field(
        default="required",
        description="What to do with an engine whose jobs are not confined on this machine; its"
        " workers find out by trying to break out. required: do not serve it; best-effort: log a"
        " warning. strict: do not start the daemon unless seccomp, Landlock and a changed root"
        " confine the jobs of every engine, even if two of them stop all attempts.",
    )
    job_uid: Count = Field(
        default=0,
        ge=0,
        le=2**32 - 2,
        description="The user, and the group of the same number, that workers and jobs run as if"
        " the daemon is root; no other process should run as that user. 0 gives each worker an"
        " unused user. A daemon that is not root cannot change users.",
    )
