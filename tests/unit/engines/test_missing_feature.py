"""Which words of an engine's mean that a module needs a proposal that is not enabled."""

from __future__ import annotations

import pytest
from wasmkilnd.engines.verdict import missing_feature

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
