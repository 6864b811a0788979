"""Read a verdict, or an error for the caller, from how a job ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from wasmkilnd import errors
from wasmkilnd.engines.verdicts import engine_messages, job_result
from wasmkilnd.engines.verdicts.engine_messages import cause_line, one_sentence
from wasmkilnd.engines.verdicts.job_result import JobResult
from wasmkilnd.engines.workers.job_protocol import JobReport
from wasmkilnd.errors import Fault
from wasmkilnd.model import Limits
from wasmkilnd.ports import CompiledCode

# Signals by which a process ends through its own doing, rather than by another process.
_OWN_ENDS = frozenset(
    {signal.SIGABRT, signal.SIGILL, signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE}
)

# A job that got at least this part of the CPU time that it wanted was not held up by others.
_FAIR_SHARE = 0.9


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
        raise errors.compiler_crashed(engine_id, "sent no artifact", cause_line(report.last_words))
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
        return job_result.parse(
            report.result, longest_s=report.elapsed_s, module_bytes=report.module_bytes
        )
    except ValueError as failure:
        raise _malformed(engine_id, str(failure)) from None


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
    return errors.compiler_crashed(engine_id, f"ended with exit code {report.exit_code}", words)


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
