"""What the end of a job means for the caller who asked for it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from wasmkilnd import errors
from wasmkilnd.engines.process import JobReport
from wasmkilnd.model import Limits

# What engines, their allocators and Python say when RLIMIT_AS stops them. Rust's
# allocator aborts with the first; mmap's failure arrives as one of the others.
_OUT_OF_MEMORY = (
    "memory allocation of",
    "cannot allocate memory",
    "os error 12",
    "memoryerror",
    "out of memory",
    "failed to allocate",
    "failed to spawn thread",
)


class Opinion(Enum):
    """What an engine thinks of a module."""

    VALID = "valid"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    """Valid, but this engine does not compile it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine's opinion of a module, which holds for as long as the engine is the same."""

    opinion: Opinion
    message: str = ""
    offset: int | None = None


def read(report: JobReport, engine_id: str, what: str, limits: Limits) -> Verdict:
    """Answer the engine's verdict on the module.

    Raises SETTING_UNKNOWN, COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT,
    ARTIFACT_TOO_LARGE or COMPILER_CRASHED for a job that came to no verdict.
    ``what`` says what the job did, for a message: "compiling" or "validating".
    """
    if report.timed_out:
        raise errors.compile_timeout(engine_id, what, limits.compile_timeout_s)
    if report.signal == signal.SIGXCPU:
        raise errors.compile_timeout(engine_id, f"{what} (CPU time)", limits.compile_cpu_s)
    result = report.result or {}
    outcome = result.get("outcome")
    message = str(result.get("message", ""))
    if outcome == "ok" or report.artifact is not None:
        return Verdict(Opinion.VALID)
    if outcome == "invalid" or outcome == "unsupported":
        if _ran_out_of_memory(message):
            raise errors.compile_memory_limit(engine_id, limits.compile_memory_bytes)
        offset = result.get("offset")
        return Verdict(Opinion(outcome), message, offset if isinstance(offset, int) else None)
    if outcome == "settings_refused":
        raise errors.settings_refused(engine_id, message)
    if outcome == "too_large":
        size = int(result.get("size_bytes", 0))
        raise errors.artifact_too_large(engine_id, size, limits.artifact_bytes)
    if outcome == "out_of_memory" or _ran_out_of_memory(report.last_words):
        raise errors.compile_memory_limit(engine_id, limits.compile_memory_bytes)
    if not report.configured and not report.protocol_error:
        # An engine that dies before it took the settings dies of them: they abort
        # on combinations that they do not take.
        raise errors.settings_refused(engine_id, one_line(report.last_words))
    raise _crash(report, engine_id)


def _crash(report: JobReport, engine_id: str) -> errors.WasmkilnError:
    if report.signal is not None:
        name = signal.Signals(report.signal).name
        return errors.compiler_crashed(
            engine_id, f"was ended by {name}", one_line(report.last_words), name
        )
    why = report.protocol_error or one_line(report.last_words)
    return errors.compiler_crashed(engine_id, f"ended with exit code {report.exit_code}", why)


def _ran_out_of_memory(words: str) -> bool:
    said = words.lower()
    return any(sign in said for sign in _OUT_OF_MEMORY)


def one_line(words: str) -> str:
    """Answer the telling line of a panic's message or a traceback."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("note:")]
    return (lines[-1] if lines else "")[:500]
