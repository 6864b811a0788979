"""The rows of the error table: how grpcurl meets each reason, and what the answer must hold."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

import wasmtime
from wasmkiln.loading import shown_by

from tests.e2e import refusals as causes
from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.refusals import Call, Meet, compile_, guarded, load, request
from tests.hostile.catalogue import many_locals
from tests.web_tokens import TestIssuer

MIB = 1024 * 1024
MEMORY_BYTES = 300 * MIB
ARTIFACT_BYTES = 2 * MIB
TIER_BYTES = 100 * 1024
ALONE = ("--workers", "1", "--redis-url", "none")
DAEMONS = {
    # Limits that a call meets within seconds: of CPU time, which is no shorter in a crowd.
    "strict": (
        *("--compile-cpu-s", "3", "--compile-memory-bytes", str(MEMORY_BYTES)),
        *("--max-artifact-bytes", str(ARTIFACT_BYTES), *ALONE),
    ),
    # One worker, which can be held up for as long as a row needs; little memory. Serves ``ENGINE``.
    "crowded": (
        *("--queue-length", "1", "--host-store-bytes", "0"),
        *("--memory-bytes", str(TIER_BYTES), *ALONE),
    ),
    # It asks for an identity; the test adds its policy, with keys of an issuer.
    "guarded": ALONE,
}
_CROWDED = {
    *("COMPILER_CRASHED", "COMPILE_QUEUE_FULL", "WORKER_UNAVAILABLE", "ENGINE_REMOVED"),
    *("JOB_ENDED", "PINS_FULL", "SERVER_DRAINING"),
}
_GUARDED = {"CREDENTIALS_MISSING", "CREDENTIALS_INVALID", "ROLE_MISSING", "QUOTA_EXCEEDED"}
# The field that a BadRequest names, where a row does not say.
_AT_FAULT = {
    **dict.fromkeys(("NOT_WASM", "MODULE_INVALID", "MODULE_TOO_LARGE"), "module"),
    **dict.fromkeys(("ENGINE_UNKNOWN", "ENGINE_REMOVED", "ENGINE_LACKS_FEATURE"), "engine"),
    "DIGEST_MISMATCH": "expected_sha256",
    "SETTING_UNKNOWN": "settings",
    **dict.fromkeys(("COMPATIBILITY_UNKNOWN", "COMPATIBILITY_UNSUPPORTED"), "compatibility"),
    "MODULE_NOT_LOADED": "sha256",
    "MODULE_PINNED": "module_sha256",
}


@dataclass(frozen=True)
class Row:
    """One way to meet a reason, and everything that the answer must hold."""

    reason: str
    meet: Meet
    says: str
    """What the message contains."""
    metadata: Mapping[str, str]
    """Each name with what its value matches; there are no others."""
    at_fault: str
    """The field that a BadRequest names; empty if there is none."""

    @property
    def daemon(self) -> str:
        """Which of the daemons meets it."""
        crowded = "crowded" if self.reason in _CROWDED else "strict"
        return "guarded" if self.reason in _GUARDED else crowded


WASMER, WASMTIME = "wasmer-1.1.0", "wasmtime-50.0.1"
_IDS = {"wasmer": WASMER, "wasmtime": WASMTIME}


def row(reason: str, meet: Meet, says: str, *, at_fault: str = "", **metadata: str) -> Row:
    """Return a row; a keyword is a name of the metadata. It has the engine that a call names."""
    named = meet.wishes.get("engine") if isinstance(meet, Call) else None
    if named and reason != "INVALID_REQUEST":
        metadata["engine"] = _IDS.get(named, named)
    return Row(reason, meet, says, metadata, at_fault or _AT_FAULT.get(reason, ""))


_TARGET = r"\w+-unknown-linux-gnu"
_NUMBER = r"\d+"
_THREADS = {"wasm_threads": "true"}
_NO_MODULE = wasm.CORE_PREAMBLE + b"\x01\x02\x03"
_DIGEST = "0" * 64
_OTHERS = re.escape("wasmtime-50.0.1, wasmtime-49.0.0")
_ENGINES = re.escape("wasmtime-50.0.1, wasmer-1.1.0, wasmtime-49.0.0")
_LOADED = wasm.constant(2)
_MISTYPED = "(module (func (result i32) i64.const 0))"
_TOO_LARGE = wasm.CORE_PREAMBLE + bytes(5 * MIB)
_TOO_DEEP = wasm.nested_blocks(1_000_000)
_LEGACY = "(module (func try catch_all end))"
_PROMOTE = "(module (func (param v128) (result v128) local.get 0 f64x2.promote_low_f32x4))"
_TWO_MEMORIES, _OFF = "(module (memory 1) (memory 1))", {"wasm_multi_memory": "false"}
_KEY = b64encode(bytes(32)).decode()
_SECTION = shown_by(wasmtime.Engine())
_OF_99 = b64encode(_SECTION[:2] + b"99" + _SECTION[4:]).decode()
_MANY_KEYS = {"keys": [{"module_sha256": _DIGEST}] * 10_001}


def on_wasmer(source: bytes | str, **wishes: object) -> Call:
    """Compile with wasmer."""
    return compile_(source, engine="wasmer", **wishes)


def on_wasmtime(source: bytes | str, **wishes: object) -> Call:
    """Compile with wasmtime."""
    return compile_(source, engine="wasmtime", **wishes)


ROWS = [
    row("NOT_WASM", load(b""), "empty"),
    row("NOT_WASM", load(b"(module)"), "WebAssembly text"),
    row("NOT_WASM", compile_(b"(module)"), "WebAssembly text"),
    row("NOT_WASM", compile_(b"\x7fELF" + bytes(99)), "compiled"),
    row("NOT_WASM", load(b"%PDF-1.7"), "not a WebAssembly"),
    row("MODULE_INVALID", load(_NO_MODULE, engine="wasmer"), "at offset", offset=_NUMBER),
    row("MODULE_INVALID", on_wasmtime(_NO_MODULE), "at offset", offset=_NUMBER),
    row("MODULE_INVALID", on_wasmtime(_MISTYPED), "type mismatch", offset=_NUMBER),
    row(
        *("MODULE_TOO_LARGE", load(_TOO_LARGE), "5,242,880"),
        size_bytes=str(5 * MIB + 8),
        limit_bytes=str(5 * MIB),
        limit="max_module_bytes",
    ),
    row(
        *("DIGEST_MISMATCH", load(_LOADED, expected_sha256=_DIGEST), _DIGEST),
        expected_sha256=_DIGEST,
        actual_sha256=wasm.digest(_LOADED),
    ),
    *(
        row("INVALID_REQUEST", request(method, message), says, at_fault=at_fault, **metadata)
        for method, message, at_fault, says, metadata in (
            ("ModuleService/Compile", {}, "source", "", {}),
            ("ModuleService/Compile", {"sha256": "A" * 64}, "sha256", "64 lowercase", {}),
            ("ModuleService/FindMissing", {"keys": [{}]}, "keys.module_sha256", "", {}),
            ("ModuleService/FindMissing", _MANY_KEYS, "keys", "10,000", {"at_most": "10000"}),
            ("AdminService/Evict", {}, "scope", "", {}),
            ("AdminService/Evict", {"all": False}, "scope", "", {}),
            ("AdminService/Evict", {"module_sha256": "x"}, "module_sha256", "64 lowercase", {}),
        )
    ),
    row("INVALID_REQUEST", load(_LOADED, expected_sha256="x"), "64", at_fault="expected_sha256"),
    row(
        *("INVALID_REQUEST", compile_(_LOADED, engine="w" * 129), "may have at most 128"),
        at_fault="engine",
        at_most="128",
        size_bytes="129",
    ),
    row("ENGINE_UNKNOWN", compile_(_LOADED, engine="v8"), WASMTIME, engines=_ENGINES),
    row(
        *("TARGET_UNSUPPORTED", on_wasmtime(_LOADED, target="z80-unknown-none"), "linux-gnu"),
        at_fault="target",
        target="z80-unknown-none",
        targets=f"{_TARGET}, pulley64",
    ),
    row(
        *("TARGET_UNSUPPORTED", on_wasmtime(_LOADED, cpu="z80"), "baseline"),
        at_fault="cpu",
        target=_TARGET,
        cpu="z80",
        cpus=".*baseline.*native.*",
    ),
    row(
        *("SETTING_UNKNOWN", on_wasmtime(_LOADED, settings={"speed": "max"}), "consume_fuel"),
        setting="speed",
        allowed=".*consume_fuel, .*",
    ),
    row(
        *("SETTING_UNKNOWN", on_wasmtime(_LOADED, settings={"consume_fuel": "9"}), "false, true"),
        setting="consume_fuel",
        value="9",
        allowed="false, true",
    ),
    row(
        *("SETTING_UNKNOWN", on_wasmtime(_LOADED, target="pulley64", settings=_THREADS)),
        *("for target pulley64: choose",),
        setting="wasm_threads",
        value="true",
        allowed="false",
    ),
    row("COMPATIBILITY_UNKNOWN", compile_(_LOADED, compatibility=_KEY), "send the section"),
    row(
        *("COMPATIBILITY_UNSUPPORTED", compile_(_LOADED, compatibility=_OF_99), "version 99"),
        engine=WASMTIME,
        differences=".*version 99.*",
    ),
    row("ENGINE_LACKS_FEATURE", on_wasmer("(component)"), WASMTIME, accepted_by=_OTHERS),
    # wasmer accepts SIMD, and then has no code for some of its operators.
    row("ENGINE_LACKS_FEATURE", on_wasmer(_PROMOTE), WASMTIME, accepted_by=_OTHERS),
    *(
        row(
            "ENGINE_LACKS_FEATURE",
            meet,
            says,
            accepted_by=others,
            offset=_NUMBER,
            feature=feature,
        )
        for meet, says, others, feature in (
            (load("(module (memory i64 1))", engine="wasmer"), WASMTIME, _OTHERS, "memory64"),
            (load(_LEGACY, engine="wasmtime"), "legacy_exceptions", "", "legacy-exceptions"),
            (on_wasmtime(_TWO_MEMORIES, settings=_OFF), "multi", _OTHERS, "multi-memory"),
        )
    ),
    row(
        "MODULE_NOT_LOADED",
        request("ModuleService/Compile", {"sha256": _DIGEST}),
        "send the module",
        sha256=_DIGEST,
    ),
    row(
        "UPLOAD_INTERRUPTED",
        request("ModuleService/Upload", {"sha256": _DIGEST, "size_bytes": 2}),
        "go on at byte 0",
        held_bytes="0",
    ),
    # Beside many other processes the limit of the wall clock may be met first.
    row(
        *("COMPILE_TIMEOUT", on_wasmer(many_locals(10_000)), "or raise WASMKILN_COMPILE_"),
        limit_s=r"\d+\.0",
    ),
    *(
        row("COMPILE_MEMORY_LIMIT", meet, f"{MEMORY_BYTES:,}", limit_bytes=str(MEMORY_BYTES))
        for meet in (on_wasmer(_TOO_DEEP), on_wasmtime(_TOO_DEEP))
    ),
    row(
        *("ARTIFACT_TOO_LARGE", on_wasmer(wasm.many_functions(20_000)), f"{ARTIFACT_BYTES:,}"),
        size_bytes=r"\d{7}",
        limit_bytes=str(ARTIFACT_BYTES),
    ),
    row(
        *("MODULE_QUARANTINED", causes.repeat_what_was_refused, f"{MEMORY_BYTES:,}"),
        engine=WASMER,
        first_reason="COMPILE_MEMORY_LIMIT",
        seconds_left=r"(600|5\d\d)(\.\d)?",
    ),
    row("COMPILER_CRASHED", causes.crash, "SIGABRT", engine=ENGINE, signal="SIGABRT"),
    row("JOB_ENDED", causes.end_the_job, "an operator ended", engine=ENGINE),
    row("COMPILE_QUEUE_FULL", causes.fill_the_queue, "", limit="queue", engine=ENGINE, waiting="1"),
    row("WORKER_UNAVAILABLE", causes.lose_every_worker, "whatever the module", engine=ENGINE),
    row("ENGINE_REMOVED", causes.lose_the_engine, "was removed", engine=ENGINE, engines=""),
    row("QUOTA_EXCEEDED", causes.use_up_a_quota, "1 per minute", quota="compiles_per_minute"),
    row("MODULE_PINNED", causes.evict_what_is_pinned, "unpin it first", sha256="[0-9a-f]{64}"),
    row(
        *("PINS_FULL", causes.pin_too_much, "unpin others"),
        tier="memory",
        bytes="[0-9]+",
        limit_bytes=str(TIER_BYTES),
    ),
    row("CREDENTIALS_MISSING", guarded(""), "authorization: Bearer TOKEN"),
    *(
        row("CREDENTIALS_INVALID", guarded(authorization), "cannot", cause=cause)
        for cause, authorization in (
            ("malformed", "Basic {reader}"),
            ("unknown", "Bearer {reader}0"),
            ("expired", "Bearer {expired}"),
            ("untrusted", f"Bearer {TestIssuer(key_id='other').token()}"),
        )
    ),
    row("ROLE_MISSING", guarded("Bearer {reader}"), "it needs the role compile", role="compile"),
    # The last one, since it ends its daemon.
    row("SERVER_DRAINING", causes.drain, "shutting down"),
]
