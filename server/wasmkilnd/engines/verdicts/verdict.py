"""What the end of a job says about its module: a verdict, an error for the caller, or code.

A job ends in one of three ways:

1. The engine decided: the module is VALID, INVALID, or UNSUPPORTED (valid, but this engine does
   not compile it). That is a ``Verdict``.
2. The job used up a limit or broke: COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT, COMPILER_CRASHED,
   SETTING_UNKNOWN. That is no verdict. Each error carries a ``Fault``, which decides whether the
   module gets a strike (see ``quarantine``): the module's own doing, the machine's, or unsure.
   CPU time used up is the module's doing. A timeout on a crowded machine must not put a
   stranger's module into quarantine.
3. The job broke the protocol, or sent a result that its own code never sends. The module has
   taken the compiler over: COMPILER_CRASHED, and the module is to blame.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wasmkilnd import errors
from wasmkilnd.engines.child.job import MAX_TYPES
from wasmkilnd.engines.verdicts import engine_messages
from wasmkilnd.engines.verdicts.engine_messages import cause_line, one_sentence
from wasmkilnd.engines.workers.job_protocol import MAX_NUMBER, JobReport
from wasmkilnd.errors import Fault
from wasmkilnd.model import Limits
from wasmkilnd.ports import CompiledCode

# Signals by which a process ends through its own doing, rather than by another process.
_OWN_ENDS = frozenset(
    {signal.SIGABRT, signal.SIGILL, signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE}
)

# A job that got at least this part of the CPU time that it wanted was not held up by others.
_FAIR_SHARE = 0.9


# JSON can express a lone surrogate, which no message to a caller can hold.
_Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]
_Row = Annotated[list[_Text], Field(min_length=4, max_length=4)]
_Rows = Annotated[list[_Row], Field(max_length=MAX_TYPES)]


class JobResult(BaseModel):
    """The content of one RESULT frame about one module, which may have written it itself."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    outcome: Literal[
        "ok", "invalid", "unsupported", "settings_refused", "too_large", "out_of_memory"
    ]
    message: _Text = ""
    """The engine's own message, where it refused the module."""
    offset: int | None = Field(default=None, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    size_bytes: int = Field(default=0, ge=0, le=MAX_NUMBER)
    """The size of an artifact that was too large to be sent."""
    imports: _Rows = []
    """Each as module, name, kind, type."""
    exports: _Rows = []
    types_truncated: bool = False


class Outcome(Enum):
    """What an engine decided about a module."""

    VALID = "valid"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    """Valid, but this engine does not compile it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine's decision about a module, which holds for as long as the engine is the same."""

    outcome: Outcome
    message: str = ""
    """The engine's own message, on one line and of bounded length."""
    offset: int | None = None
    """Where in the module the engine stopped, in bytes."""
    oversize_bytes: int | None = None
    """The size of its artifact, where that was above the limit."""
    feature: str = ""
    """The proposal that the module needs and this engine does not enable, where it says so."""


def read(report: JobReport, engine_id: str, what: str, limits: Limits) -> Verdict:
    """Return the engine's verdict on the module.

    ``what`` names what the job did, for messages: "compiling" or "validating". Raises
    SETTING_UNKNOWN, COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT or COMPILER_CRASHED for a job that
    reached no verdict.
    """
    if report.timed_out:
        fault = _fault_of_timeout(report, limits.compile_timeout_s)
        raise errors.compile_timeout(engine_id, what, limits.compile_timeout_s, fault)
    if report.signal == signal.SIGXCPU:
        raise errors.compile_cpu_timeout(engine_id, what, limits.compile_cpu_s)
    if report.protocol_error:
        why = one_sentence(report.protocol_error)
        # Only the module can have made the compiler do that.
        raise errors.compiler_crashed(engine_id, "broke the job protocol", why, fault=Fault.MODULE)
    result = _result(report, engine_id)
    if report.packed is not None or (result and result.outcome == "ok"):
        return Verdict(Outcome.VALID)
    if result is None:
        raise _no_result(report, engine_id, limits)
    if result.outcome == "settings_refused":
        raise errors.settings_refused(engine_id, one_sentence(result.message))
    if result.outcome == "too_large":
        if not limits.artifact_bytes < result.size_bytes <= limits.compile_memory_bytes:
            raise _malformed(
                engine_id, f"an artifact of {result.size_bytes} bytes is not too large"
            )
        return Verdict(Outcome.VALID, oversize_bytes=result.size_bytes)
    # A message with an offset comes from a validator, and never tells that memory ran out.
    if result.outcome == "out_of_memory" or (
        result.offset is None and engine_messages.tells_out_of_memory(result.message)
    ):
        raise _no_memory(report, result.message, engine_id, limits)
    return Verdict(
        Outcome(result.outcome),
        one_sentence(result.message),
        result.offset,
        feature=engine_messages.missing_feature(result.message),
    )


def compiled_code(report: JobReport, engine_id: str, queued_s: float) -> CompiledCode:
    """Return the code that a job with the verdict VALID has made. Raises COMPILER_CRASHED."""
    if report.packed is None:
        words, fault = cause_line(report.last_words), _unsure(report)
        raise errors.compiler_crashed(engine_id, "sent no artifact", words, fault=fault)
    result = _result(report, engine_id)
    return CompiledCode(
        code=report.packed,
        compile_time_s=result.seconds if result else 0.0,
        queue_time_s=queued_s,
        imports=result.imports if result else (),
        exports=result.exports if result else (),
        # Without a result the engine died while it named the types of a complete artifact.
        types_truncated=result.types_truncated if result else True,
    )


def _result(report: JobReport, engine_id: str) -> JobResult | None:
    if report.result is None:
        return None
    try:
        result = JobResult.model_validate(report.result)
    except ValidationError as failure:
        first = failure.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _malformed(engine_id, f"{where}: {first['msg']}") from None
    for name, value, most in (
        ("seconds", result.seconds, report.elapsed_s),
        ("offset", result.offset or 0, report.module_bytes),
        ("number of types", len(result.imports) + len(result.exports), MAX_TYPES),
    ):
        if value > most:
            raise _malformed(engine_id, f"{name}: expected at most {most:g}")
    return result


def _malformed(engine_id: str, why: str) -> errors.WasmkilnError:
    # Only the module can have made the compiler send that.
    return errors.compiler_crashed(
        engine_id, "returned a malformed result", one_sentence(why), fault=Fault.MODULE
    )


def _no_result(report: JobReport, engine_id: str, limits: Limits) -> errors.WasmkilnError:
    own_end = report.signal in _OWN_ENDS or (report.signal is None and bool(report.exit_code))
    ran_out = any(map(engine_messages.tells_out_of_memory, report.last_words.splitlines()))
    # Once the code is made, all that is left is to copy it. Where memory runs out then, wasmer
    # ends by SIGSEGV, because it reads the copy that it did not get.
    if ran_out or (own_end and report.compiled):
        return _no_memory(report, report.last_words, engine_id, limits)
    words = cause_line(report.last_words)
    if own_end and not report.configured:
        # An engine that dies before it took the settings dies of them: engines abort on
        # combinations that they do not support.
        return errors.settings_refused(engine_id, words)
    if report.signal is not None:
        name = _name_of(report.signal)
        fault = _unsure(report) if name in errors.FROM_OUTSIDE else Fault.MODULE
        return errors.compiler_crashed(engine_id, f"was ended by {name}", words, name, fault)
    how = f"ended with exit code {report.exit_code}"
    return errors.compiler_crashed(engine_id, how, words, fault=_unsure(report))


def _no_memory(
    report: JobReport, words: str, engine_id: str, limits: Limits
) -> errors.WasmkilnError:
    limit_bytes = limits.compile_memory_bytes
    wanted_bytes = report.peak_memory_bytes + engine_messages.refused_bytes(words)
    # A job that needed much less than its limit failed because the machine, or a control group,
    # had no more memory or threads.
    fault = Fault.MODULE if wanted_bytes >= limit_bytes / 2 else _unsure(report)
    return errors.compile_memory_limit(engine_id, limit_bytes, fault)


def _fault_of_timeout(report: JobReport, limit_s: float) -> Fault:
    """Blame the module only if its job got the time that the limit grants.

    Compilers do not sleep: a job that wanted a CPU for less than half of its time was stopped,
    or its machine was. A job that waited for a CPU might have been in time on a machine without
    the other jobs; if it were blamed, callers that send much work could have strangers' modules
    quarantined.
    """
    if report.waited_s is None:
        had_its_time = report.alone and report.cpu_s >= limit_s / 2
    else:
        wanted_s = report.cpu_s + report.waited_s
        had_its_time = wanted_s >= limit_s / 2 and report.cpu_s >= _FAIR_SHARE * wanted_s
    return Fault.MODULE if had_its_time else _unsure(report)


def _unsure(report: JobReport) -> Fault:
    """Blame a module a little for what the machine may have done; not for other jobs."""
    return Fault.UNSURE if report.alone else Fault.NONE


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal, which a job can send to itself
        return f"signal {number}"
