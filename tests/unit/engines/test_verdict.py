"""What the end of a job means, and what its words and numbers do."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import Any

import pytest
from wasmkilnd.engines import verdict
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.job import JobReport
from wasmkilnd.engines.verdict import Outcome, missing_feature, tells_out_of_memory
from wasmkilnd.errors import Fault, Reason, WasmkilnError

from tests.frames import pack
from tests.unit.engines import limits

LIMITS = replace(limits.LIMITS, compile_memory_bytes=4096)


def read(**report: Any) -> verdict.Verdict:
    report = {"sent": {Type.CONFIGURED}, "memory_bytes": LIMITS.compile_memory_bytes, **report}
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
        # Busy all the time in one thread, and in two; and for half of it. Nothing but the CPU time
        # tells: where /proc hides a job from the daemon, that is all there is to know.
        ({**TIMED_OUT, "cpu_s": 29.9}, Fault.MODULE),
        ({**TIMED_OUT, "cpu_s": 59.0}, Fault.MODULE),
        ({**TIMED_OUT, "cpu_s": 15.0}, Fault.MODULE),
        # It waited for a CPU most of the time, or was stopped; or the kernel does not tell.
        ({**TIMED_OUT, "cpu_s": 14.9}, Fault.NONE),
        ({**TIMED_OUT, "cpu_s": 0.1}, Fault.NONE),
        (TIMED_OUT, Fault.NONE),
        ({"signal": int(signal.SIGXCPU)}, Fault.MODULE),
    ],
    Reason.COMPILE_MEMORY_LIMIT: [
        ({**said(MEMORY_WORDS), "peak_memory_bytes": 1949}, Fault.MODULE),
        ({**said(MEMORY_WORDS), "peak_memory_bytes": 1948}, Fault.NONE),
        ({"result": {"outcome": "invalid", "message": ASKED_TOO_MUCH}}, Fault.MODULE),
        ({"result": {"outcome": "invalid", "message": "mmap: Cannot allocate memory"}}, Fault.NONE),
        ({**said(NO_THREAD), "peak_memory_bytes": 100}, Fault.NONE),
        ({**said(NO_THREAD), "peak_memory_bytes": 4000}, Fault.MODULE),
        (
            {"signal": 11, "sent": {Type.CONFIGURED, Type.COMPILED}, "peak_memory_bytes": 4000},
            Fault.MODULE,
        ),
        ({**OUT_OF_MEMORY, "peak_memory_bytes": 4000}, Fault.MODULE),
        ({**OUT_OF_MEMORY, "peak_memory_bytes": 100}, Fault.NONE),
    ],
    Reason.COMPILER_CRASHED: [
        ({"signal": 11}, Fault.MODULE),
        (said("panicked\nat x.rs:1"), Fault.MODULE),
        ({"signal": 9}, Fault.NONE),
        ({"signal": 9, "peak_memory_bytes": 3000}, Fault.MODULE),
        ({"exit_code": 70}, Fault.NONE),
        ({"exit_code": 0}, Fault.NONE),
        ({"protocol_error": "unknown frame type 9", "signal": 9}, Fault.MODULE),
        ({"result": {"outcome": "fine"}}, Fault.MODULE),
    ],
    Reason.SETTING_UNKNOWN: [
        ({"result": {"outcome": "settings_refused", "message": "no gc"}}, Fault.NONE),
        ({"sent": set(), **said("gc needs reference types")}, Fault.NONE),
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
    if reason is Reason.COMPILER_CRASHED:  # What is told of it is what is known of it.
        words = report.get("protocol_error") or report.get("last_words") or ""
        ended = signal.Signals(report["signal"]).name if "signal" in report else ""
        assert "".join(words.split()[-1:]) in failure.value.message
        assert "protocol_error" in report or ended in failure.value.message


def test_code_that_did_not_arrive_may_be_the_machine_s() -> None:
    report = JobReport(result={"outcome": "ok"})
    with pytest.raises(WasmkilnError, match="sent no artifact") as failure:
        verdict.compiled_code(report, "e-1", 0.0)
    assert failure.value.fault is Fault.NONE


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


# Every number of a result is within what can be so


# As JSON says them: a job may write what it likes into its frame.
NO_NUMBERS = ["NaN", "-Infinity", "-1", "true", "null", '"1"', "[]", "1e400", "9" * 400]
NONSENSE = {
    "seconds": [*NO_NUMBERS, "1e300", "2.51", "-0.001"],
    "offset": [each for each in [*NO_NUMBERS, "1.0", "101", "1e300"] if each != "null"],
    "size_bytes": [*NO_NUMBERS, "1001.0", "1000", "1000001", str(2**64)],
}


OUTCOMES = {"seconds": "ok", "offset": "invalid", "size_bytes": "too_large"}


@pytest.mark.parametrize(
    ("name", "number"), [(name, each) for name, all_ in NONSENSE.items() for each in all_]
)
def test_a_number_that_cannot_be_is_no_result(name: str, number: str) -> None:
    result = {"outcome": OUTCOMES[name], name: json.loads(number)}
    code = pack(b"code") if name == "seconds" else None
    with pytest.raises(WasmkilnError) as failure:
        read(result=result, packed=code, module_bytes=100, elapsed_s=2.5)
    assert (failure.value.reason, failure.value.fault) == (Reason.COMPILER_CRASHED, Fault.MODULE)
    assert name in failure.value.message or "not too large" in failure.value.message
    assert len(failure.value.message) < 300


# Which words mean that a module needs a proposal that is not enabled


# What wasmer 1.1.0, wasmtime 49.0.0 and 50.0.1 say of a module for each proposal: by default, and
# with the proposals switched off that wasmtime has. Of each form and each name, one.
SAID = {
    "legacy_exceptions feature required for try instruction (at offset 0x17)": "legacy-exceptions",
    "Invalid input WebAssembly code at offset 33: legacy_exceptions feature required for"
    " try instruction": "legacy-exceptions",
    "legacy exceptions support is not enabled (at offset 0x17)": "legacy-exceptions",
    "legacy exception handling proposal is not supported": "legacy-exceptions",
    "Exceptions support is not enabled (at offset 23)": "exception-handling",
    "exception refs not supported without the exception handling feature (at offset 0xb)":
        "exception-handling",
    "the custom page sizes proposal must be enabled to customize a memory's page size (at"
    " offset 0xb)": "custom-page-sizes",
    "cannot define continuation types when stack switching is disabled (at offset 0xe)":
        "stack-switching",
    "custom descriptors proposal must be enabled to use descriptor and describes (at offset 0xb)":
        "custom-descriptors",
    "custom descriptors required for exact function imports (at offset 0x11)": "custom-descriptors",
    "custom descriptors operations support is not enabled (at offset 0xd)": "custom-descriptors",
    "memory control support is not enabled (at offset 0x20)": "memory-control",
    "shared globals require the shared-everything-threads proposal (at offset 0xb)":
        "shared-everything-threads",
    "heap types not supported without the gc feature (at offset 0xb)": "gc",
    "cannot define struct types when gc types are disabled (at offset 0xb)": "gc",
    "rec group usage requires `gc` proposal to be enabled (at offset 0xb)": "gc",
    "gc types are disallowed but found type which requires gc (at offset 0xb)": "gc",
    "unknown type 7: type index out of bounds because the GC proposal is disabled (at offset 0xb)":
        "gc",
    "function references required for index reference types (at offset 0xe)": "function-references",
    "memory64 must be enabled for 64-bit tables (at offset 0xb)": "memory64",
    "multiple memories (at offset 0)": "multi-memory",
    "multi-memory not enabled: zero byte expected (at offset 0x20)": "multi-memory",
    "multiple tables (at offset 0xa)": "reference-types",
    "reference types must be enabled for anyref elem segment (at offset 3)": "reference-types",
    "func type returns multiple values but the multi-value feature is not enabled (at offset 0xb)":
        "multi-value",
    "blocks, loops, and ifs may only produce a resulttype when multi-value is not enabled"
    " (at offset 0x1d)": "multi-value",
    "SIMD support is not enabled (at offset 0xb)": "simd",
    "relaxed SIMD support is not enabled (at offset 0x1e)": "relaxed-simd",
    "tail calls support is not enabled (at offset 23)": "tail-call",
    "threads must be enabled for shared memories (at offset 11)": "threads",
    "wide arithmetic support is not enabled (at offset 0x25)": "wide-arithmetic",
    "bulk memory support is not enabled (at offset 0x22)": "bulk-memory",
    "bulk memory must be enabled (at offset 0x22)": "bulk-memory",
    "mutable global support is not enabled (at offset 0x10)": "mutable-globals",
    "sign extension operations support is not enabled (at offset 0x10)": "sign-extension",
    "saturating float to int conversions support is not enabled (at offset 0x10)":
        "saturating-float-to-int",
    "invalid leading byte 0x7F with compact imports proposal disabled (at offset 0x14)":
        "compact-imports",
    "module linking proposal not enabled (at offset 9)": "module-linking",
    "`error-context.drop` requires the component model error-context feature (at offset 0xb)":
        "component-model-error-context",
    "synchronous `future.read` requires the component model more async builtins feature"
    " (at offset 0xb)": "component-model-more-async-builtins",
    "`[get]` and `[set]` names require the component model accessors feature (at offset 0xb)":
        "component-model-accessors",
    "Fixed-length lists require the component model fixed-length lists feature (at offset 0xb)":
        "component-model-fixed-length-lists",
    "support for component model `value`s is not enabled (at offset 0xb)": "component-model-values",
    "canonical option `gc` requires the `cm-gc` feature (at offset 0x20)": "component-model-gc",
    "64-bit memories require the `cm64` feature to be enabled (at offset 0x20)": "cm64",
    "the `cm-implements` feature is not active (at offset 0x20)": "cm-implements",
    "`thread.available_parallelism` requires the shared-everything-threads proposal (at"
    " offset 0xb)": "shared-everything-threads",
}  # fmt: skip

# What engines say of what is just broken, or of a module that chose its names well.
OTHER_WORDS = [
    "",
    "type mismatch: expected i32, found i64 (at offset 0x18048a)",
    "Unknown opcode: 0x1f (at offset 30)",
    "invalid table resizable limits flags (at offset 11)",
    "data count section required (at offset 0x19)",
    "constant expression required: global.get of mutable global (at offset 9)",
    "duplicate export name `legacy_exceptions feature required for try instruction` already"
    " defined (at offset 0x20)",
    "duplicate export name `x` requires the component model async feature` already defined"
    " (at offset 0x20)",
    "duplicate export name `a\n\nCaused by:\n    threads support is not enabled` already defined"
    " (at offset 0x20)",
    "x\nthreads support is not enabled",
    "threads support is not enabled\n` already defined (at offset 0x20)",
    "`threads support is not enabled` is not in kebab case (at offset 0x20)",
    "import name `threads support is not enabled` conflicts with previous name `multiple memories`"
    " (at offset 0x20)",
    f"{'a ' * 400}requires the component model async feature",
    "a component was given, which is not supported",
    "root-level component imports are not supported",
]


@pytest.mark.parametrize(("message", "feature"), SAID.items())
def test_a_proposal_that_is_not_enabled_is_named(message: str, feature: str) -> None:
    assert missing_feature(message) == feature


@pytest.mark.parametrize("message", OTHER_WORDS)
def test_nothing_is_named_by_other_words_or_by_names_of_the_module(message: str) -> None:
    assert missing_feature(message) == ""
