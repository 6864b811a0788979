"""What the end of a job means: each way to end has its own error."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest
from wasmkilnd.engines import verdict
from wasmkilnd.engines.process import JobReport
from wasmkilnd.engines.verdict import Outcome, tells_out_of_memory
from wasmkilnd.errors import Fault, Reason, WasmkilnError
from wasmkilnd.model import pack

from tests.unit.engines import limits

LIMITS = replace(limits.LIMITS, compile_memory_bytes=4096)


def read(**report: Any) -> verdict.Verdict:
    report.setdefault("configured", True)
    return verdict.read(JobReport(**report), "wasmtime-1", "compiling", LIMITS)


def said(words: str) -> dict[str, Any]:
    """Return the end of a job that aborts with these words."""
    return {"signal": 6, "last_words": words}


TIMED_OUT = {"timed_out": True, "signal": 9}
MEMORY_WORDS = "memory allocation of 99 bytes failed"
ASKED_TOO_MUCH = "memory allocation of 8589934592 bytes failed"
NO_THREAD = "ThreadPoolBuildError { kind: IOError(Resource temporarily unavailable) }"


OUT_OF_MEMORY = {"result": {"outcome": "out_of_memory"}}
# By its reason what a job's end is, and whose fault.
ENDS: dict[Reason, list[tuple[dict[str, Any], Fault]]] = {
    Reason.COMPILE_TIMEOUT: [
        # Busy all the time in one thread, and in two.
        ({**TIMED_OUT, "cpu_s": 29.9, "waited_s": 0.1}, Fault.MODULE),
        ({**TIMED_OUT, "cpu_s": 59.0, "waited_s": 1.0}, Fault.MODULE),
        ({**TIMED_OUT, "cpu_s": 29.9, "waited_s": 0.1, "alone": True}, Fault.MODULE),
        # It had to wait for a CPU, for others' jobs or for other processes.
        ({**TIMED_OUT, "cpu_s": 26.0, "waited_s": 4.0}, Fault.NONE),
        ({**TIMED_OUT, "cpu_s": 15.0, "waited_s": 45.0}, Fault.NONE),
        ({**TIMED_OUT, "cpu_s": 1.0, "waited_s": 29.0, "alone": True}, Fault.UNSURE),
        ({**TIMED_OUT, "cpu_s": 26.0, "waited_s": 4.0, "alone": True}, Fault.UNSURE),
        # It was stopped.
        ({**TIMED_OUT, "cpu_s": 0.1, "waited_s": 0.5, "alone": True}, Fault.UNSURE),
        ({**TIMED_OUT, "cpu_s": 0.1, "waited_s": 0.5}, Fault.NONE),
        # The kernel does not tell how long it waited, or anything.
        ({**TIMED_OUT, "cpu_s": 29.9}, Fault.NONE),
        ({**TIMED_OUT, "cpu_s": 29.9, "alone": True}, Fault.UNSURE),
        ({**TIMED_OUT, "alone": True}, Fault.UNSURE),
        (TIMED_OUT, Fault.NONE),
        ({"signal": int(signal.SIGXCPU)}, Fault.MODULE),
    ],
    Reason.COMPILE_MEMORY_LIMIT: [
        ({**said(MEMORY_WORDS), "peak_memory_bytes": 1949}, Fault.MODULE),
        ({**said(MEMORY_WORDS), "peak_memory_bytes": 1948, "alone": True}, Fault.UNSURE),
        ({**said(MEMORY_WORDS), "peak_memory_bytes": 1948}, Fault.NONE),
        ({"result": {"outcome": "invalid", "message": ASKED_TOO_MUCH}}, Fault.MODULE),
        ({"result": {"outcome": "invalid", "message": "mmap: Cannot allocate memory"}}, Fault.NONE),
        ({**said(NO_THREAD), "peak_memory_bytes": 100, "alone": True}, Fault.UNSURE),
        ({**said(NO_THREAD), "peak_memory_bytes": 100}, Fault.NONE),
        ({**said(NO_THREAD), "peak_memory_bytes": 4000}, Fault.MODULE),
        ({"signal": 11, "compiled": True, "peak_memory_bytes": 4000}, Fault.MODULE),
        ({**OUT_OF_MEMORY, "peak_memory_bytes": 4000}, Fault.MODULE),
        ({**OUT_OF_MEMORY, "peak_memory_bytes": 100, "alone": True}, Fault.UNSURE),
        ({**OUT_OF_MEMORY, "peak_memory_bytes": 100}, Fault.NONE),
    ],
    Reason.COMPILER_CRASHED: [
        ({"signal": 11}, Fault.MODULE),
        (said("panicked\nat x.rs:1"), Fault.MODULE),
        ({"signal": 9, "alone": True}, Fault.UNSURE),
        ({"signal": 9}, Fault.NONE),
        ({"exit_code": 70, "alone": True}, Fault.UNSURE),
        ({"exit_code": 70}, Fault.NONE),
        ({"exit_code": 0}, Fault.NONE),
        ({"protocol_error": "unknown frame type 9", "signal": 9}, Fault.MODULE),
        ({"result": {"outcome": "fine"}}, Fault.MODULE),
    ],
    Reason.SETTING_UNKNOWN: [
        ({"result": {"outcome": "settings_refused", "message": "no gc"}}, Fault.NONE),
        ({"configured": False, **said("gc needs reference types")}, Fault.NONE),
    ],
    Reason.ARTIFACT_TOO_LARGE: [
        ({"result": {"outcome": "too_large", "size_bytes": 3000}}, Fault.NONE),
    ],
}


@pytest.mark.parametrize(
    ("reason", "report", "fault"),
    [(reason, *end) for reason, ends in ENDS.items() for end in ends],
)
def test_how_a_job_ends_tells_the_reason_and_its_own_fault_from_the_machine_s(
    reason: Reason, report: dict[str, Any], fault: Fault
) -> None:
    with pytest.raises(WasmkilnError) as failure:
        read(**report)
    assert (failure.value.reason, failure.value.fault) == (reason, fault)
    # What is told of it is what is known of it.
    for told in ("last_words", "protocol_error"):
        if reason is Reason.COMPILER_CRASHED and told in report:
            assert report[told].split()[-1] in failure.value.message


@pytest.mark.parametrize(("alone", "fault"), [(True, Fault.UNSURE), (False, Fault.NONE)])
def test_code_that_did_not_arrive_may_be_the_machine_s(alone: bool, fault: Fault) -> None:
    report = JobReport(result={"outcome": "ok"}, alone=alone)
    with pytest.raises(WasmkilnError, match="sent no artifact") as failure:
        verdict.compiled_code(report, "e-1", 0.0)
    assert failure.value.fault is fault


def test_verdicts() -> None:
    assert read(result={"outcome": "ok"}).outcome is Outcome.VALID
    invalid = read(result={"outcome": "invalid", "message": "bad", "offset": 7})
    assert (invalid.outcome, invalid.message, invalid.offset) == (Outcome.INVALID, "bad", 7)
    lacking = read(result={"outcome": "unsupported", "message": "simd"})
    assert (lacking.outcome, lacking.offset) == (Outcome.UNSUPPORTED, None)


@pytest.mark.parametrize("outcome", ["invalid", "unsupported"])
@pytest.mark.parametrize(
    ("message", "offset"),
    [
        ("duplicate export name `onMemoryError` already defined (at offset 0x20)", 32),
        ("import `out of memory` is not supported", None),
        # With a place in the module it is the validator who speaks, however he puts it.
        ("section out of memory order (at offset 0x8)", 8),
    ],
)
def test_a_name_that_speaks_of_memory_is_a_name(
    outcome: str, message: str, offset: int | None
) -> None:
    said = read(result={"outcome": outcome, "message": message, "offset": offset})
    assert (said.outcome.value, said.message, said.offset) == (outcome, message, offset)


def test_a_panic_that_quotes_a_name_is_a_crash() -> None:
    words = "thread '<unnamed>' panicked at 'no type of `out of memory`', a.rs:1:2\nnote: run with"
    with pytest.raises(WasmkilnError) as failure:
        read(signal=6, last_words=words)
    assert failure.value.reason is Reason.COMPILER_CRASHED


def test_an_artifact_counts_even_when_the_engine_dies_of_its_types() -> None:
    assert read(packed=pack(b"code"), signal=6).outcome is Outcome.VALID


# Engines' words for a lack of memory, and names of modules that sound like them


_THREADS = (
    "The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(Os"
    ' { code: 11, kind: WouldBlock, message: "Resource temporarily unavailable" }) }'
)


@pytest.mark.parametrize(
    "words",
    [
        # Said by wasmer 1.1.0 and wasmtime 49 and 50 under limits from 0 to 200 MB.
        "memory allocation of 36 bytes failed",
        "memory allocation of memory allocation of 2048 bytes failed",
        "MemoryError:",
        "Insufficient resources: failed to allocate memory for functions:"
        " Cannot allocate memory (os error 12)",
        _THREADS,
        f"thread '<unnamed>' panicked at '{_THREADS}', /registry/src/registry.rs:170:10",
        # As Rust's standard library has it.
        "mmap: Cannot allocate memory (os error 12)",
        "thread '<unnamed>' (15) panicked at 'failed to spawn thread: Os { code: 11 }', a.rs:1:2",
        "thread 'main' panicked at 'called `Result::unwrap()` on an `Err` value: Os { code: 12,"
        ' kind: OutOfMemory, message: "Cannot allocate memory" }\', a.rs:1:2',
        "called `Result::unwrap()` on an `Err` value: OutOfMemory",
        "can't go on: out of memory",
    ],
)
def test_said_by_the_engine(words: str) -> None:
    assert tells_out_of_memory(words)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "unexpected end-of-file",
        "thread '<unnamed>' (15) panicked at /registry/src/registry.rs:170:10:",
        "duplicate export name `onMemoryError` already defined",
        "duplicate export name `a` cannot allocate memory (os error 12) `b` already defined",
        "import `x` has the name 'out of memory'",
        'type "os error 12" is not supported',
        "duplicate export name `thread 'x' panicked at 'out of memory', y` already defined",
    ],
)
def test_names_of_the_module_say_nothing(words: str) -> None:
    assert not tells_out_of_memory(words)
