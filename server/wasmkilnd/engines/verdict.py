"""What the end of a job says about its module: a verdict, an error for the caller, or code.

A job ends in one of three ways:

1. The engine decided: the module is VALID, INVALID, or UNSUPPORTED (valid, but this engine does
   not compile it). That is a ``Verdict``.
2. The job used up a limit or broke: COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT, COMPILER_CRASHED,
   ARTIFACT_TOO_LARGE, SETTING_UNKNOWN. That is no verdict. Each error carries a ``Fault``, which
   decides whether the module gets a strike (see ``quarantine``): the module's own doing, or the
   machine's. A time-out is the module's doing if its job used CPU time for half of its limit. On
   a crowded machine it must not put a stranger's module into quarantine.
3. The job broke the protocol, or sent a result that its own code never sends. The module has
   taken the compiler over: COMPILER_CRASHED, and the module is to blame.

The engines' own messages tell whether a proposal is not enabled, or memory ran out. Engines share
a validator, wasmparser, each in a version of its own. It knows more proposals than an engine
enables, and says so in a few forms. They were found by giving each engine a module for each
proposal, with the proposal switched off where that is possible, and in the texts that the engines'
libraries contain. A message may quote names that the module chose: no name must pass for the
engine's own words.

Messages for callers are one line of printable text and at most some 400 characters.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from wasmkilnd import errors
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.child.job import MAX_TYPES
from wasmkilnd.engines.job import MAX_NUMBER, JobReport
from wasmkilnd.errors import Fault, Reason, WasmkilnError
from wasmkilnd.mistakes import sentences
from wasmkilnd.model import Limits
from wasmkilnd.wire import Packed

# Signals by which a process ends through its own doing, rather than by another process.
_OWN_ENDS = frozenset(
    {signal.SIGABRT, signal.SIGILL, signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE}
)

_SIGNALS = {int(each): each.name for each in signal.Signals}


_Row = Annotated[list[str], Field(min_length=4, max_length=4)]
_Rows = Annotated[list[_Row], Field(max_length=MAX_TYPES)]


class JobResult(BaseModel, strict=True, frozen=True, allow_inf_nan=False):
    """The content of one RESULT frame about one module, which may have written it itself."""

    outcome: Literal[
        "ok", "invalid", "unsupported", "settings_refused", "too_large", "out_of_memory"
    ]
    # The engine's own message, where it refused the module.
    message: str = ""
    offset: int | None = Field(default=None, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    # The size of an artifact that was too large to be sent.
    size_bytes: int = Field(default=0, ge=0, le=MAX_NUMBER)
    # The key of what the artifact says of its engine; empty if it says nothing.
    compatibility: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    # Each as module, name, kind, type.
    imports: _Rows = []
    exports: _Rows = []
    types_truncated: bool = False


@dataclass(frozen=True, slots=True)
class CompiledCode:
    """The result of a compilation that succeeded."""

    code: Packed
    # How long it took, and the module's imports and exports.
    result: JobResult
    queue_time_s: float


class Outcome(Enum):
    """What an engine decided about a module."""

    VALID = "valid"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"  # Valid, but this engine does not compile it.


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine's decision about a module."""

    outcome: Outcome
    # The engine's own message, on one line and of bounded length.
    message: str = ""
    # Where in the module the engine stopped, in bytes.
    offset: int | None = None
    # The proposal that the module needs and this engine does not enable, where it says so.
    feature: str = ""


def read(report: JobReport, engine_id: str, what: str, limits: Limits) -> Verdict:
    """Return the engine's verdict on the module.

    ``what`` names what the job did, for messages: "compiling" or "validating". Raises
    SETTING_UNKNOWN, COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT, ARTIFACT_TOO_LARGE or COMPILER_CRASHED
    for a job that reached no verdict.
    """
    if report.timed_out:
        # What one thread can use is the same with many: they share the CPUs with other jobs.
        fault = _fault_where(report.cpu_s >= limits.compile_timeout_s / 2)
        raise errors.compile_timeout(engine_id, what, limits.compile_timeout_s, fault)
    if report.signal == signal.SIGXCPU:
        raise errors.compile_cpu_timeout(engine_id, what, limits.compile_cpu_s)
    if report.protocol_error:
        raise _taken_over(engine_id, report.protocol_error, "broke the job protocol")
    result = _result(report, engine_id)
    if report.packed is not None or (result and result.outcome == "ok"):
        return Verdict(Outcome.VALID)
    if result is None:
        raise _no_result(report, engine_id, limits)
    if result.outcome == "settings_refused":
        raise errors.settings_refused(engine_id, one_sentence(result.message))
    if result.outcome == "too_large":
        size_bytes, limit_bytes = result.size_bytes, limits.artifact_bytes
        if limit_bytes < size_bytes <= report.memory_bytes:
            raise errors.artifact_too_large(engine_id, size_bytes, limit_bytes)
        raise _taken_over(engine_id, f"an artifact of {size_bytes} bytes is not too large")
    # A message with an offset comes from a validator, and never tells that memory ran out.
    if result.outcome == "out_of_memory" or (
        result.offset is None and tells_out_of_memory(result.message)
    ):
        raise _no_memory(report, result.message, engine_id, limits)
    words, feature = one_sentence(result.message), missing_feature(result.message)
    return Verdict(Outcome(result.outcome), words, result.offset, feature)


def ending(report: JobReport, engine_id: str, limits: Limits) -> Verdict | WasmkilnError:
    """Return what ``read`` returns, or raises."""
    try:
        return read(report, engine_id, "compiling", limits)
    except WasmkilnError as failure:
        return failure


def more_memory(report: JobReport, failure: WasmkilnError, limits: Limits) -> int:
    """Return with how much memory a job that ended in ``failure`` is to run again; 0 for not again.

    Short of memory, engines end in any way: a job that had less than its limit gets that, unless
    its engine decided or its time ran out. One that had its limit gets more only where it ran out
    of memory, or was killed as the kernel does then.
    """
    given, limit_bytes = report.memory_bytes, limits.compile_memory_bytes
    is_broken = failure.reason is Reason.COMPILER_CRASHED
    is_killed = is_broken and report.signal == signal.SIGKILL and not report.protocol_error
    if failure.reason is Reason.COMPILE_MEMORY_LIMIT or is_killed:
        more = limits.compile_memory_retry_bytes if given >= limit_bytes else limit_bytes
        return more if more > given else 0
    # An engine that dies of its settings may have died of memory.
    is_broken |= failure.reason is Reason.SETTING_UNKNOWN and report.result is None
    return limit_bytes if is_broken and given < limit_bytes else 0


def compiled_code(report: JobReport, engine_id: str, queued_s: float) -> CompiledCode:
    """Return the code that a job with the verdict VALID has made. Raises COMPILER_CRASHED."""
    if report.packed is None:
        words = cause_line(report.last_words)
        raise errors.compiler_crashed(engine_id, "sent no artifact", words, fault=Fault.NONE)
    # Without a result the engine died while it named the types of a complete artifact.
    said = _result(report, engine_id) or JobResult(outcome="ok", types_truncated=True)
    return CompiledCode(report.packed, said, queued_s)


def _result(report: JobReport, engine_id: str) -> JobResult | None:
    if report.result is None:
        return None
    try:
        result = JobResult.model_validate(report.result)
    except ValidationError as failure:
        raise _taken_over(engine_id, sentences(failure)[0]) from None
    if result.seconds > report.elapsed_s or (result.offset or 0) > report.module_bytes:
        raise _taken_over(engine_id, "seconds or offset: more than there can be")
    return result


def _taken_over(
    engine_id: str, why: str, how: str = "returned a malformed result"
) -> WasmkilnError:
    """Return COMPILER_CRASHED for what only the module can have made the compiler do."""
    return errors.compiler_crashed(engine_id, how, one_sentence(why), fault=Fault.MODULE)


def _no_result(report: JobReport, engine_id: str, limits: Limits) -> WasmkilnError:
    own_end = report.signal in _OWN_ENDS or (report.signal is None and bool(report.exit_code))
    ran_out = any(map(tells_out_of_memory, report.last_words.splitlines()))
    # Once the code is made, all that is left is to copy it. Where memory runs out then, wasmer
    # ends by SIGSEGV, because it reads the copy that it did not get.
    if ran_out or (own_end and Type.COMPILED in report.sent):
        return _no_memory(report, report.last_words, engine_id, limits)
    words = cause_line(report.last_words)
    if own_end and words and Type.CONFIGURED not in report.sent:
        # An engine that says something and dies before it took the settings dies of them: engines
        # abort on combinations that they do not support.
        return errors.settings_refused(engine_id, words)
    how, name = f"ended with exit code {report.exit_code}", ""
    if report.signal is not None:
        # Real-time signals, which a job can send to itself, have no name.
        name = _SIGNALS.get(report.signal, f"signal {report.signal}")
        how = f"was ended by {name}"
    # The kernel kills as an operator does. It had a reason where the job took much memory.
    killed = name == "SIGKILL" and report.peak_memory_bytes >= report.memory_bytes / 2
    fault = Fault.MODULE if killed else None
    return errors.compiler_crashed(engine_id, how, words, name, fault)


def _no_memory(report: JobReport, words: str, engine_id: str, limits: Limits) -> WasmkilnError:
    limit_bytes = report.memory_bytes
    wanted_bytes = report.peak_memory_bytes + refused_bytes(words)
    # A job that needed much less than its limit failed because the machine, or a control group,
    # had no more memory or threads.
    fault = _fault_where(wanted_bytes >= limit_bytes / 2)
    setting = f"compile_memory{'_retry' * (limit_bytes > limits.compile_memory_bytes)}_bytes"
    return errors.compile_memory_limit(engine_id, limit_bytes, fault, setting=setting)


def _fault_where(used_a_lot: bool) -> Fault:
    """Blame the module where its job used a lot of what it had, else the machine."""
    return Fault.MODULE if used_a_lot else Fault.NONE


# --- Engines' own messages ------------------------------------------------------------------

# The name of a proposal as an engine writes it, and what needs it. Neither holds a line break.
_NAME = r"(?P<name>[A-Za-z0-9][\w -]{0,40}?)"
_WHAT = r"[\w`'\[\]<>,. -]{1,100}?"

# Each form is the whole message, with no text of the module before or behind it. Names of the
# module stand between quotation marks in the middle of a message: for a module that exports
# "legacy_exceptions feature required" twice, it begins with "duplicate export name".
_FEATURE_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_NAME} support is not enabled",
        rf"support for {_NAME} `values?`s is not enabled",
        rf"{_NAME} feature required for [a-z_]+ instruction",
        rf"{_NAME} proposal (?:is )?not (?:enabled|supported)",
        rf"{_NAME} not enabled(?:: zero byte expected)?",
        rf"(?:the )?{_NAME}(?: proposal)? must be enabled(?: (?:to|for) {_WHAT})?",
        rf"{_WHAT} requires? the {_NAME} (?:proposal|feature)",
        rf"{_WHAT} requires? (?:the )?`{_NAME}` (?:proposal|feature)(?: to be enabled)?",
        rf"the `{_NAME}` feature is not active",
        rf"{_WHAT} not supported without the {_NAME} feature",
        rf"cannot define [a-z]+ types when {_NAME}(?: types are| is) disabled",
        rf"{_WHAT} (?:but the|when) {_NAME}(?: feature)? is not enabled",
        rf"(?P<name>function references|custom descriptors) required for {_WHAT}",
        r"(?P<name>gc) types are disallowed but found type which requires gc",
        rf"unknown type [\w<> ]{{1,30}}: type index out of bounds because the {_NAME}"
        r" proposal is disabled",
        rf"invalid leading byte 0x[0-9A-F]+ with {_NAME} proposal disabled",
        r"multiple (?P<name>memories|tables)",
    )
)
# What a validator adds to its message to say where it stopped.
_PLACE = re.compile(r"^Invalid input WebAssembly code at offset \d+: | \(at offset \w+\)$")

# Names that engines use beside the proposal's own, which GetCapabilities lists.
_ALIASES = {
    "cm-gc": "component-model-gc",
    "component-model": "component-model-values",
    "custom-descriptors-operations": "custom-descriptors",
    "exceptions": "exception-handling",
    "exception": "exception-handling",
    "legacy-exception-handling": "legacy-exceptions",
    "memories": "multi-memory",
    "mutable-global": "mutable-globals",
    "saturating-float-to-int-conversions": "saturating-float-to-int",
    "sign-extension-operations": "sign-extension",
    "tables": "reference-types",
    "tail-calls": "tail-call",
}


# What engines, their allocators and Python write when RLIMIT_AS stops them. Rust's allocator
# aborts with the first; a failed mmap arrives as one of the others.
_OUT_OF_MEMORY_SIGNS = (
    "memory allocation of",
    "cannot allocate memory",
    "os error 12",
    "outofmemory",
    "memoryerror",
    "out of memory",
    "failed to allocate",
    "failed to spawn thread",
    "threadpoolbuilderror",
)
# What Rust puts before an error's own words, with quotation marks in it.
_PANIC = re.compile(
    r"^(?:thread '[^']*'(?: \(\d+\))? panicked at '?)?"
    r"(?:called `Result::unwrap\(\)` on an `Err` value: )?"
)
_REFUSED_ALLOCATION = re.compile(r"memory allocation of (\d{1,19}) bytes")
# An apostrophe within a word quotes nothing.
_QUOTATION = re.compile(r"[`\"]|(?<!\w)'")

# Engines quote the module's names, which may be long, and end with where they stopped.
_MAX_MESSAGE = 400
_MAX_MESSAGE_END = 60


def missing_feature(message: str) -> str:
    """Return the proposal that the module needs, by the engine's message; "" if it names none."""
    own = _PLACE.sub("", message.strip())
    for form in _FEATURE_FORMS:
        if found := form.fullmatch(own):
            name = re.sub(r"[ _]", "-", found["name"].lower())
            return _ALIASES.get(name, name)
    return ""


def tells_out_of_memory(line: str) -> bool:
    """Return whether one message, or one line of a panic, says that memory ran out.

    Ignore everything from the first quotation mark on: engines quote the module's names, and an
    export may be called ``onMemoryError``.
    """
    own = _QUOTATION.split(_PANIC.sub("", line), maxsplit=1)[0].lower()
    return any(sign in own for sign in _OUT_OF_MEMORY_SIGNS)


def refused_bytes(words: str) -> int:
    """Return the size of the allocation that was refused; 0 if the words do not tell.

    It can be most of what a job needed: a table that grows is refused when half of it is there.
    """
    refused = _REFUSED_ALLOCATION.search(words)
    return int(refused[1]) if refused else 0


def one_sentence(words: str) -> str:
    """Return ``words`` on one line, without control characters, cut in the middle if long."""
    line = " ".join(words.split())
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    if len(line) <= _MAX_MESSAGE:
        return line
    return f"{line[: _MAX_MESSAGE - _MAX_MESSAGE_END]} … {line[-_MAX_MESSAGE_END:]}"


def cause_line(words: str) -> str:
    """Return the line of a panic's message or a traceback that tells the cause."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("note:")]
    return one_sentence(lines[-1]) if lines else ""
