"""Modules whose verdict by each engine is known beforehand, and why it is what it is.

W is wasmer 1.1.0, T is wasmtime 49 and 50. A case's modules are text, or bytes where text cannot
say what is wrong with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.e2e import wasm
from tests.e2e.wasm import CORE_PREAMBLE, leb128, section

OK = ""
INVALID = "MODULE_INVALID"
LACKS = "ENGINE_LACKS_FEATURE"
NOT_WASM = "NOT_WASM"

# By these, a module would have an engine say that it lacks a feature.
LACKING_NAMES = (
    "legacy_exceptions feature required for try instruction",
    "legacy_exceptions feature required for try instruction (at offset 0x17)",
    "` legacy_exceptions feature required for try instruction",
    "x\\n\\nCaused by:\\n    0: threads support is not enabled (at offset 0x20)\\n",
    "x\\nmemory control support is not enabled",
    "multiple memories",
)

_ADDER = section(1, b"\x01\x60\0\0") + section(3, b"\x01\0") + section(10, b"\x01\x02\0\x0b")


@dataclass(frozen=True, slots=True)
class Case:
    """One module, and what Load and Compile answer by each engine: a reason, or OK."""

    name: str
    source: str | bytes
    wasmer: tuple[str, str]
    wasmtime: tuple[str, str]

    def wasm(self) -> bytes:
        """Return its bytes."""
        return self.source if isinstance(self.source, bytes) else wasm.from_text(self.source)

    def __str__(self) -> str:
        return self.name


def _everywhere(name: str, source: str | bytes) -> Case:
    return Case(name, source, (OK, OK), (OK, OK))


def _nowhere(name: str, source: str | bytes) -> Case:
    return Case(name, source, (INVALID, INVALID), (INVALID, INVALID))


def _needs_what_nobody_has(name: str, source: str | bytes) -> Case:
    return Case(name, source, (LACKS, LACKS), (LACKS, LACKS))


def _newer(name: str, source: str | bytes) -> Case:
    return Case(name, source, (LACKS, LACKS), (OK, OK))


def _not_compiled_by_wasmer(name: str, source: str | bytes) -> Case:
    return Case(name, source, (OK, LACKS), (OK, OK))


def _twice(name: str) -> str:
    return f'(module (func (export "{name}") (export "{name}")))'


CASES = [
    # What both take.
    _everywhere("empty", CORE_PREAMBLE),
    _everywhere("a-function", CORE_PREAMBLE + _ADDER),
    _everywhere("multi-value", "(module (func (result i32 i64) i32.const 1 i64.const 2))"),
    _everywhere("bulk-memory", '(module (memory 1) (data "x") (func (data.drop 0)))'),
    _everywhere("custom-sections", CORE_PREAMBLE + section(0, b"\x01a") * 3 + _ADDER),
    _everywhere("custom-section-last", CORE_PREAMBLE + _ADDER + section(0, b"\x01zdata")),
    _everywhere("name-section-of-rubbish", CORE_PREAMBLE + section(0, b"\x04name\xff\xff\xff")),
    _everywhere("empty-name", '(module (func (export "")))'),
    _everywhere("odd-names", '(module (func (export "\\00\\n\\u{202e}") (export "\\u{1f525}")))'),
    # What is broken, by its bytes.
    _nowhere("trailing-byte", CORE_PREAMBLE + _ADDER + b"\0"),
    _nowhere("section-beyond-the-end", CORE_PREAMBLE + b"\x01\x40\x01"),
    _nowhere("cut-in-a-section", (CORE_PREAMBLE + _ADDER)[:-2]),
    _nowhere("sections-out-of-order", CORE_PREAMBLE + section(3, b"\0") + section(1, b"\0")),
    _nowhere("section-twice", CORE_PREAMBLE + section(1, b"\0") * 2),
    _nowhere("section-unknown", CORE_PREAMBLE + section(99, b"")),
    _nowhere("code-without-functions", CORE_PREAMBLE + section(10, b"\x01\x02\0\x0b")),
    _nowhere("functions-without-code", CORE_PREAMBLE + _ADDER[:-6]),
    _nowhere("number-too-long", CORE_PREAMBLE + b"\x01\x86\x80\x80\x80\x80\x80\0\x01\x60\0\0"),
    _nowhere("a-count-that-lies", CORE_PREAMBLE + section(1, b"\xff\xff\xff\xff\x0f")),
    _nowhere("export-name-no-utf8", CORE_PREAMBLE + _ADDER[:10] + section(7, b"\x01\x01\xff\0\0")),
    _nowhere("custom-name-no-utf8", CORE_PREAMBLE + section(0, b"\x02\xc0\x80")),
    _nowhere("custom-section-without-a-name", CORE_PREAMBLE + section(0, b"")),
    _nowhere("opcode-unknown", CORE_PREAMBLE + _ADDER.replace(b"\x02\0\x0b", b"\x03\0\xff\x0b")
             .replace(b"\x0a\x04", b"\x0a\x05")),
    # What is broken, by its meaning.
    _nowhere("type-mismatch", "(module (func (result i32) i64.const 0))"),
    _nowhere("nothing-on-the-stack", "(module (func i32.add drop))"),
    _nowhere("unknown-local", "(module (func local.get 7 drop))"),
    _nowhere("unknown-label", "(module (func br 7))"),
    _nowhere("unknown-function", "(module (func call 7))"),
    _nowhere("duplicate-export", '(module (func (export "a")) (func (export "a")))'),
    # Names that sound like what engines say when memory has run out.
    _nowhere("duplicate-out-of-memory",
             '(module (func (export "out of memory")) (func (export "out of memory")))'),
    _nowhere("duplicate-on-memory-error",
             '(module (func (export "onMemoryError")) (func (export "onMemoryError")))'),
    _nowhere("duplicate-with-quotation-marks",
             '(module (func (export "a` os error 12 `")) (func (export "a` os error 12 `")))'),
    _not_compiled_by_wasmer("signature-called-memory-error",
                            '(module (func (export "MemoryError") (import "out of memory"'
                            f' "os error 12") (param {"i64 " * 999})))'),
    _nowhere("memory-too-large", "(module (memory 65537))"),
    _nowhere("limits-reversed", "(module (memory 2 1))"),
    _nowhere("start-with-parameters", "(module (func (param i32)) (start 0))"),
    _nowhere("alignment-too-large", "(module (memory 1)"
             " (func (drop (i32.load align=8 (i32.const 0)))))"),
    _nowhere("constant-global-set", "(module (global i32 (i32.const 0))"
             " (func (global.set 0 (i32.const 1))))"),
    _nowhere("undeclared-reference", "(module (func (drop (ref.func 0))))"),
    _nowhere(
        "long-name-twice",
        CORE_PREAMBLE + section(1, b"\x01\x60\0\0") + section(3, b"\x01\0")
        + section(7, b"\x02" + (leb128(90_000) + b"a\n" * 45_000 + b"\0\0") * 2)
        + section(10, b"\x01\x02\0\x0b"),
    ),
    # What neither has, or what is off by default in wasmtime, too.
    _needs_what_nobody_has("custom-page-sizes", "(module (memory 1 (pagesize 1)))"),
    _needs_what_nobody_has("legacy-exceptions", "(module (tag $t) (func try catch $t end))"),
    _needs_what_nobody_has("stack-switching", "(module (type $f (func)) (type (cont $f)))"),
    _needs_what_nobody_has("custom-descriptors", "(module (rec (type $a (descriptor $b) (struct))"
                           " (type $b (describes $a) (struct))))"),
    _needs_what_nobody_has("shared-everything", "(module (type (shared (struct))))"),
    _needs_what_nobody_has("memory-control",
                           "(module (memory 1) (func i32.const 0 i32.const 0 memory.discard))"),
    _needs_what_nobody_has("error-context", "(component (core func (canon error-context.drop)))"),
    _needs_what_nobody_has("component-with-legacy-exceptions",
                           "(component (core module (func try catch_all end)))"),
    # wasmer stops at a proposal that it does not have; wasmtime has it and gets to what is wrong.
    _nowhere("multi-memory-and-a-type-mismatch",
             "(module (memory 1) (memory 1) (func (result i32) i64.const 0))"),
    # Names that sound like what engines say when a proposal is not enabled.
    *(_nowhere(f"duplicate-{index}", _twice(name)) for index, name in enumerate(LACKING_NAMES)),
    # What wasmtime has and wasmer has not.
    _newer("wide-arithmetic", "(module (func (param i64 i64 i64 i64) (result i64 i64)"
           " local.get 0 local.get 1 local.get 2 local.get 3 i64.add128))"),
    _newer("memory64", "(module (memory i64 1))"),
    _newer("multi-memory", "(module (memory 1) (memory 1))"),
    _newer("tail-call", "(module (func $f return_call $f))"),
    _newer("extended-const", "(module (global i32 (i32.add (i32.const 1) (i32.const 2))))"),
    _newer("exceptions", "(module (tag $t) (func throw $t))"),
    _newer("gc", "(module (type $s (struct (field i32)))"
           " (func (result (ref $s)) i32.const 0 struct.new $s))"),
    _newer("function-references", "(module (type $t (func))"
           " (func (param (ref $t)) local.get 0 call_ref $t))"),
    _newer("relaxed-simd", "(module (func (param v128 v128) (result v128)"
           " local.get 0 local.get 1 i8x16.relaxed_swizzle))"),
    _newer("shared-memory", "(module (memory 1 1 shared)"
           " (func (drop (i32.atomic.load (i32.const 0)))))"),
    # What wasmer validates and then does not compile; at the last it panics.
    _not_compiled_by_wasmer("table-of-externref", "(module (table 1 externref)"
                            " (elem (i32.const 0) externref (ref.null extern)))"),
    _not_compiled_by_wasmer("simd-promote", "(module (func (param v128) (result v128)"
                            " local.get 0 f64x2.promote_low_f32x4))"),
    _not_compiled_by_wasmer("wide-signature", f"(module (func (param {'i64 ' * 999})))"),
    _not_compiled_by_wasmer("tag", "(module (tag))"),
    # What wasmtime validates and then does not read.
    Case(
        "compact-imports",
        CORE_PREAMBLE + section(1, b"\x01\x60\0\0") + section(2, b"\x01\x01a\0\x7f\x01\x01b\0\0"),
        (LACKS, LACKS), (OK, LACKS),
    ),
    # Components, of which wasmer knows nothing.
    _newer("empty-component", b"\0asm\x0d\0\x01\0"),
    _newer("component", '(component (core module (func (export "f")))'
           " (core instance (instantiate 0)))"),
    _nowhere("component-with-a-broken-module", "(component (core module (func (result i32))))"),
    _nowhere("component-of-an-unknown-type", "(component (type (list 9)))"),
    _nowhere("component-cut-off", b"\0asm\x0d\0\x01\0\x01\x40\0asm"),
    Case("component-imported", '(component (import "x" (component)))',
         (LACKS, LACKS), (LACKS, LACKS)),
    # What never reaches an engine.
    Case("nothing", b"", (NOT_WASM, NOT_WASM), (NOT_WASM, NOT_WASM)),
    Case("text", b"(module)", (NOT_WASM, NOT_WASM), (NOT_WASM, NOT_WASM)),
    Case("half-a-preamble", b"\0asm\x01", (NOT_WASM, NOT_WASM), (NOT_WASM, NOT_WASM)),
    Case("version-2", b"\0asm\x02\0\0\0", (NOT_WASM, NOT_WASM), (NOT_WASM, NOT_WASM)),
]  # fmt: skip


def write_cases(folder: Path) -> list[Path]:
    """Write every case's module; return the paths in the order of ``CASES``."""
    folder.mkdir()
    paths = [folder / f"{case}.wasm" for case in CASES]
    for path, case in zip(paths, CASES, strict=True):
        path.write_bytes(case.wasm())
    return paths
