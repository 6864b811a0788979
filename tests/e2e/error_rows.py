"""The rows of the error table: how grpcurl meets each, and what the answer must hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.refusals import (
    Meet,
    compile_,
    crash,
    drain,
    evict_what_is_pinned,
    fill_the_queue,
    guarded,
    load,
    lose_every_worker,
    lose_the_engine,
    pin_too_much,
    repeat_what_was_refused,
    request,
    use_up_a_quota,
)
from tests.hostile.catalogue import many_locals
from tests.web_tokens import TestIssuer

MIB = 1024 * 1024
CPU_S = 3
MEMORY_BYTES = 300 * MIB
ARTIFACT_BYTES = 2 * MIB
STRICT = (
    # CPU time, which is no shorter where others want the CPUs too.
    *("--compile-cpu-s", str(CPU_S), "--compile-memory-bytes", str(MEMORY_BYTES)),
    *("--max-artifact-bytes", str(ARTIFACT_BYTES), "--workers", "1", "--redis-url", "none"),
)
"""A daemon with limits that a call meets within seconds."""
CROWDED = ("--workers", "1", "--queue-length", "1", "--redis-url", "none")
"""A daemon whose one worker can be held up for as long as a row needs; it serves ``ENGINE``."""

GUARDED = ("--workers", "1", "--redis-url", "none")
"""A daemon that asks for an identity; the test adds its policy, with keys of an issuer."""

WASMER, WASMTIME = "wasmer-1.1.0", "wasmtime-50.0.1"
TARGET = r"\w+-unknown-linux-gnu"


@dataclass(frozen=True)
class Row:
    """One way to meet a reason, and everything that the answer must hold."""

    name: str
    reason: str
    meet: Meet
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Each name with what its value matches; there are no others."""
    at_fault: str = ""
    """The field that a BadRequest names; empty if there is none."""
    says: str = ""
    """What the message contains."""
    retry: bool = False
    guarded: bool = False
    """Whether it needs the guarded daemon instead of the strict one."""
    crowded: bool = False
    """Whether it needs the crowded daemon instead of the strict one."""

    def __str__(self) -> str:
        return f"{self.reason}-{self.name}"


_NO_MODULE = wasm.CORE_PREAMBLE + b"\x01\x02\x03"
_DIGEST = "0" * 64
_ENGINES = re.escape("wasmer-1.1.0, wasmtime-50.0.1, wasmtime-49.0.0")
_OTHERS = re.escape("wasmtime-50.0.1, wasmtime-49.0.0")
_LOADED = wasm.constant(2)

ROWS = [
    Row("empty", "NOT_WASM", load(b""), at_fault="module", says="empty"),
    Row("text", "NOT_WASM", load(b"(module)"), at_fault="module", says="WebAssembly text"),
    Row(
        "compiled",
        "NOT_WASM",
        compile_(b"\x7fELF" + bytes(99)),
        at_fault="module",
        says="compiled",
    ),
    Row(
        "text-compiled",
        "NOT_WASM",
        compile_(b"(module)"),
        at_fault="module",
        says="WebAssembly text",
    ),
    Row("other", "NOT_WASM", load(b"%PDF-1.7"), at_fault="module", says="not a WebAssembly"),
    Row(
        "malformed",
        "MODULE_INVALID",
        load(_NO_MODULE, engine="wasmer"),
        {"engine": WASMER, "offset": r"\d+"},
        at_fault="module",
        says="at offset",
    ),
    Row(
        "malformed-compiled",
        "MODULE_INVALID",
        compile_(_NO_MODULE, engine="wasmtime"),
        {"engine": WASMTIME, "offset": r"\d+"},
        at_fault="module",
        says="at offset",
    ),
    Row(
        "invalid",
        "MODULE_INVALID",
        compile_("(module (func (result i32) i64.const 0))", engine="wasmtime"),
        {"engine": WASMTIME, "offset": r"\d+"},
        at_fault="module",
        says="type mismatch",
    ),
    Row(
        "size",
        "MODULE_TOO_LARGE",
        load(wasm.CORE_PREAMBLE + bytes(5 * MIB)),
        {"size_bytes": str(5 * MIB + 8), "limit_bytes": str(5 * MIB)},
        at_fault="module",
        says="5,242,880",
    ),
    Row(
        "digest",
        "DIGEST_MISMATCH",
        load(_LOADED, expected_sha256=_DIGEST),
        {"expected_sha256": _DIGEST, "actual_sha256": wasm.digest(_LOADED)},
        at_fault="expected_sha256",
        says=_DIGEST,
    ),
    Row(
        "no-source",
        "INVALID_REQUEST",
        request("ModuleService/Compile", {}),
        at_fault="source",
    ),
    Row(
        "long-name",
        "INVALID_REQUEST",
        compile_(_LOADED, engine="w" * 129),
        {"at_most": "128", "size_bytes": "129"},
        at_fault="engine",
        says="may have at most 128",
    ),
    Row("no-scope", "INVALID_REQUEST", request("AdminService/Evict", {}), at_fault="scope"),
    Row(
        "engine",
        "ENGINE_UNKNOWN",
        compile_(_LOADED, engine="v8"),
        {"engine": "v8", "engines": _ENGINES},
        at_fault="engine",
        says=WASMTIME,
    ),
    Row(
        "target",
        "TARGET_UNSUPPORTED",
        compile_(_LOADED, engine="wasmtime", target="z80-unknown-none"),
        {"engine": WASMTIME, "target": "z80-unknown-none", "targets": TARGET},
        at_fault="target",
        says="linux-gnu",
    ),
    Row(
        "cpu",
        "TARGET_UNSUPPORTED",
        compile_(_LOADED, engine="wasmtime", cpu="z80"),
        {"engine": WASMTIME, "target": TARGET, "cpu": "z80", "cpus": ".*baseline.*native.*"},
        at_fault="cpu",
        says="baseline",
    ),
    Row(
        "name",
        "SETTING_UNKNOWN",
        compile_(_LOADED, engine="wasmtime", settings={"speed": "max"}),
        {"engine": WASMTIME, "setting": "speed", "allowed": ".*consume_fuel, .*"},
        at_fault="settings",
        says="consume_fuel",
    ),
    Row(
        "value",
        "SETTING_UNKNOWN",
        compile_(_LOADED, engine="wasmtime", settings={"consume_fuel": "9"}),
        {
            "engine": WASMTIME,
            "setting": "consume_fuel",
            "value": "9",
            "allowed": "false, true",
        },
        at_fault="settings",
        says="false, true",
    ),
    Row(
        "component",
        "ENGINE_LACKS_FEATURE",
        compile_("(component)", engine="wasmer"),
        {"engine": WASMER, "accepted_by": _OTHERS},
        at_fault="engine",
        says=WASMTIME,
    ),
    Row(
        "proposal-of-nobody",
        "ENGINE_LACKS_FEATURE",
        load("(module (func try catch_all end))", engine="wasmtime"),
        {
            "engine": WASMTIME,
            "accepted_by": "",
            "offset": r"\d+",
            "feature": "legacy-exceptions",
        },
        at_fault="engine",
        says="legacy_exceptions feature required",
    ),
    Row(
        "proposal",
        "ENGINE_LACKS_FEATURE",
        load("(module (memory i64 1))", engine="wasmer"),
        {
            "engine": WASMER,
            "accepted_by": _OTHERS,
            "offset": r"\d+",
            "feature": "memory64",
        },
        at_fault="engine",
        says=WASMTIME,
    ),
    Row(
        "digest",
        "MODULE_NOT_LOADED",
        request("ModuleService/Compile", {"sha256": _DIGEST}),
        {"sha256": _DIGEST},
        at_fault="sha256",
        says="send the module",
    ),
    Row(
        "time",
        "COMPILE_TIMEOUT",
        compile_(many_locals(10_000), engine="wasmer"),
        {"engine": WASMER, "limit_s": r"\d+\.0"},
        # Beside many other processes the limit of the wall clock may be met first.
        says="or raise WASMKILN_COMPILE_",
    ),
    Row(
        "memory",
        "COMPILE_MEMORY_LIMIT",
        compile_(wasm.nested_blocks(1_000_000), engine="wasmer"),
        {"engine": WASMER, "limit_bytes": str(MEMORY_BYTES)},
        says=f"{MEMORY_BYTES:,}",
    ),
    Row(
        "size",
        "ARTIFACT_TOO_LARGE",
        compile_(wasm.many_functions(20_000), engine="wasmer"),
        {"engine": WASMER, "size_bytes": r"\d{7}", "limit_bytes": str(ARTIFACT_BYTES)},
        says=f"{ARTIFACT_BYTES:,}",
    ),
    Row(
        "again",
        "MODULE_QUARANTINED",
        repeat_what_was_refused,
        {
            "engine": WASMER,
            "first_reason": "COMPILE_MEMORY_LIMIT",
            "seconds_left": r"(600|5\d\d)(\.\d)?",
        },
        says=f"{MEMORY_BYTES:,}",
    ),
    Row(
        "abort",
        "COMPILER_CRASHED",
        crash,
        {"engine": ENGINE, "signal": "SIGABRT"},
        says="SIGABRT",
        crowded=True,
    ),
    Row(
        "queue",
        "COMPILE_QUEUE_FULL",
        fill_the_queue,
        {"limit": "queue", "engine": ENGINE, "waiting": "1"},
        retry=True,
        crowded=True,
    ),
    Row(
        "no-worker",
        "WORKER_UNAVAILABLE",
        lose_every_worker,
        {"engine": ENGINE},
        says="whatever the module",
        retry=True,
        crowded=True,
    ),
    Row(
        "gone",
        "ENGINE_REMOVED",
        lose_the_engine,
        {"engine": ENGINE, "engines": ""},
        at_fault="engine",
        says="was removed from this daemon",
        crowded=True,
    ),
    Row(
        "used-up",
        "QUOTA_EXCEEDED",
        use_up_a_quota,
        {"quota": "compiles_per_minute"},
        says="your quota allows 1 per minute",
        retry=True,
        crowded=True,
    ),
    Row(
        "pinned",
        "MODULE_PINNED",
        evict_what_is_pinned,
        {"sha256": "[0-9a-f]{64}"},
        at_fault="module_sha256",
        says="unpin it first",
    ),
    Row(
        "pins",
        "PINS_FULL",
        pin_too_much,
        {"tier": "memory", "bytes": "[0-9]+", "limit_bytes": "102400"},
        says="unpin others",
        crowded=True,
    ),
    Row(
        "no-credentials",
        "CREDENTIALS_MISSING",
        guarded(""),
        says="authorization: Bearer TOKEN",
        guarded=True,
    ),
    *(
        Row(
            f"credentials-{cause}",
            "CREDENTIALS_INVALID",
            guarded(authorization),
            {"cause": cause},
            says="cannot",
            guarded=True,
        )
        for cause, authorization in (
            ("malformed", "Basic {reader}"),
            ("unknown", "Bearer {reader}0"),
            ("expired", "Bearer {expired}"),
            ("untrusted", f"Bearer {TestIssuer(key_id='other').token()}"),
        )
    ),
    Row(
        "role",
        "ROLE_MISSING",
        guarded("Bearer {reader}"),
        {"role": "compile"},
        says="it needs the role compile",
        guarded=True,
    ),
    # The last one, since it ends its daemon.
    Row("drain", "SERVER_DRAINING", drain, says="shutting down", crowded=True),
]
