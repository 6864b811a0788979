"""What the end of a job means for the caller who asked for it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum

from wasmkilnd import errors
from wasmkilnd.engines.verdicts import job_result, missing_feature, out_of_memory
from wasmkilnd.engines.verdicts.job_result import JobResult
from wasmkilnd.engines.workers.job_protocol import JobReport
from wasmkilnd.errors import Fault
from wasmkilnd.model import Limits
from wasmkilnd.wire import Packed

# How a process ends itself, rather than being ended by somebody else.
_OWN_ENDS = frozenset(
    {signal.SIGABRT, signal.SIGILL, signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE}
)

# The least part of the CPU time that it wanted with which a job was as good as alone.
_FAIR_SHARE = 0.9

# Engines quote the module's names, which may be long, and end with where they stopped.
_MAX_MESSAGE = 400
_MAX_MESSAGE_END = 60


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
    """The engine's own words, on one line and not endless."""
    offset: int | None = None
    """Where in the module the engine stopped, in bytes."""
    oversize_bytes: int | None = None
    """The size of its artifact, where that was above the limit."""
    feature: str = ""
    """The proposal that the module needs and this engine does not enable, where it says so."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a job made of a valid module; ``answer`` is missing if it died naming its types."""

    code: Packed
    answer: JobResult | None


def read(report: JobReport, engine_id: str, what: str, limits: Limits) -> Verdict:
    """Return the engine's verdict on the module.

    Raises SETTING_UNKNOWN, COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT or COMPILER_CRASHED
    for a job that came to no verdict.
    ``what`` says what the job did, for a message: "compiling" or "validating".
    """
    if report.timed_out:
        fault = _fault_of_time(report, limits.compile_timeout_s)
        raise errors.compile_timeout(engine_id, what, limits.compile_timeout_s, fault)
    if report.signal == signal.SIGXCPU:
        raise errors.compile_cpu_timeout(engine_id, what, limits.compile_cpu_s)
    if report.protocol_error:
        why = one_sentence(report.protocol_error)
        # Nobody but the module can have made the compiler do that.
        raise errors.compiler_crashed(
            engine_id, "said what no compiler says", why, fault=Fault.MODULE
        )
    said = _answer(report, engine_id)
    if report.packed is not None or (said and said.outcome == "ok"):
        return Verdict(Opinion.VALID)
    if said is None:
        raise _no_answer(report, engine_id, limits)
    if said.outcome == "settings_refused":
        raise errors.settings_refused(engine_id, one_sentence(said.message))
    if said.outcome == "too_large":
        if not limits.artifact_bytes < said.size_bytes <= limits.compile_memory_bytes:
            raise _nonsense(engine_id, f"an artifact of {said.size_bytes} bytes is not too large")
        return Verdict(Opinion.VALID, oversize_bytes=said.size_bytes)
    # Only a validator says where in the module it stopped.
    if said.outcome == "out_of_memory" or (
        said.offset is None and out_of_memory.is_said_in(said.message)
    ):
        raise _no_memory(report, said.message, engine_id, limits)
    return Verdict(
        Opinion(said.outcome),
        one_sentence(said.message),
        said.offset,
        feature=missing_feature.named_in(said.message),
    )


def compiled(report: JobReport, engine_id: str) -> Compiled:
    """Return what a job whose verdict is VALID has made. Raises COMPILER_CRASHED."""
    if report.packed is None:
        raise errors.compiler_crashed(engine_id, "sent no artifact", one_line(report.last_words))
    return Compiled(report.packed, _answer(report, engine_id))


def _answer(report: JobReport, engine_id: str) -> JobResult | None:
    if report.result is None:
        return None
    try:
        return job_result.parse(
            report.result, longest_s=report.elapsed_s, module_bytes=report.module_bytes
        )
    except ValueError as failure:
        raise _nonsense(engine_id, str(failure)) from None


def _nonsense(engine_id: str, why: str) -> errors.WasmkilnError:
    """Nobody but the module can have made the compiler say this."""
    return errors.compiler_crashed(
        engine_id, "returned a malformed result", one_sentence(why), fault=Fault.MODULE
    )


def _no_answer(report: JobReport, engine_id: str, limits: Limits) -> errors.WasmkilnError:
    own_end = report.signal in _OWN_ENDS or (report.signal is None and bool(report.exit_code))
    # All that is left once the code is made is to copy it, and wasmer looks at a copy that it
    # did not get: it ends by SIGSEGV where others say that memory has run out.
    ran_out = any(map(out_of_memory.is_said_in, report.last_words.splitlines()))
    if ran_out or (own_end and report.compiled):
        return _no_memory(report, report.last_words, engine_id, limits)
    words = one_line(report.last_words)
    if own_end and not report.configured:
        # An engine that dies before it took the settings dies of them: they abort
        # on combinations that they do not take.
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
    wanted_bytes = report.peak_memory_bytes + out_of_memory.refused_bytes(words)
    # Memory and threads run out below a job's limit where the machine, or a control group,
    # has no more.
    fault = Fault.MODULE if wanted_bytes >= limit_bytes / 2 else _unsure(report)
    return errors.compile_memory_limit(engine_id, limit_bytes, fault)


def _fault_of_time(report: JobReport, limit_s: float) -> Fault:
    """Tell a job that used its time from one that did not get it.

    Nothing that compiles sleeps: one that wanted a CPU for less than half of its time was
    stopped, or its machine was. One that had to wait for a CPU might have been in time without
    the others, and whoever sends enough work could do that to anybody's module.
    """
    if report.waited_s is None:
        had_its_time = report.alone and report.cpu_s >= limit_s / 2
    else:
        wanted_s = report.cpu_s + report.waited_s
        had_its_time = wanted_s >= limit_s / 2 and report.cpu_s >= _FAIR_SHARE * wanted_s
    return Fault.MODULE if had_its_time else _unsure(report)


def _unsure(report: JobReport) -> Fault:
    """Blame a module a little for what the machine may have done; not for its neighbours."""
    return Fault.UNSURE if report.alone else Fault.NONE


def one_sentence(words: str) -> str:
    """Return ``words`` on one line, without what a terminal would obey, cut in the middle."""
    line = " ".join(words.split())
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    if len(line) <= _MAX_MESSAGE:
        return line
    return f"{line[: _MAX_MESSAGE - _MAX_MESSAGE_END]} … {line[-_MAX_MESSAGE_END:]}"


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # A real-time signal, which a job can send to itself.
        return f"signal {number}"


def one_line(words: str) -> str:
    """Return the telling line of a panic's message or a traceback."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("note:")]
    return one_sentence(lines[-1]) if lines else ""
