"""Modules made to hurt a compiler: small, mostly valid, and each by another way.

Every builder answers the same bytes each time, and all of them stay below the default limit of
5 MiB. What each does to which engine is what `python -m tests.hostile` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from tests.e2e import wasm
from tests.e2e.wasm import CORE_PREAMBLE, leb128, section, signed_leb128

I32, I64, F64, V128 = b"\x7f", b"\x7e", b"\x7c", b"\x7b"
EMPTY = b"\x40"
END = b"\x0b"


@dataclass(frozen=True, slots=True)
class Hostile:
    """One module of the catalogue."""

    name: str
    hurts_by: str
    build: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name


def _vector(items: Sequence[bytes]) -> bytes:
    return leb128(len(items)) + b"".join(items)


def _type(params: bytes, results: bytes) -> bytes:
    return (
        b"\x60" + _vector([params[i : i + 1] for i in range(len(params))])
        + _vector([results[i : i + 1] for i in range(len(results))])
    )  # fmt: skip


def _body(code: bytes, local_groups: Sequence[tuple[int, bytes]] = ()) -> bytes:
    groups = _vector([leb128(count) + of for count, of in local_groups])
    return leb128(len(groups) + len(code) + 1) + groups + code + END


def _module(
    types: Sequence[bytes], functions: Sequence[tuple[int, bytes]], *others: tuple[int, bytes]
) -> bytes:
    """Return a module of functions, each a type's index and a body, and other sections."""
    sections = {
        1: _vector(types),
        3: _vector([leb128(of) for of, _ in functions]),
        10: _vector([body for _, body in functions]),
        **dict(others),
    }
    order = [1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11]
    return CORE_PREAMBLE + b"".join(section(n, sections[n]) for n in order if n in sections)


def _get(local: int) -> bytes:
    return b"\x20" + leb128(local)


def _set(local: int) -> bytes:
    return b"\x21" + leb128(local)


NOTHING = _type(b"", b"")


def live_locals(locals_: int, branches: int) -> bytes:
    """Keep ``locals_`` alive across ``branches`` places where control flow splits and joins."""
    split = b"".join(
        _get(n % locals_) + b"\x04\x40" + _get((n * 7) % locals_) + _set((n * 13) % locals_) + END
        for n in range(branches)
    )
    uses = b"".join(_get(n) + b"\x1a" for n in range(locals_))
    loop = b"\x03\x40" + split + uses + _get(0) + b"\x0d\0" + END
    return _module([NOTHING], [(0, _body(loop, [(locals_, I32)]))])


def many_locals(functions: int, locals_: int = 50_000) -> bytes:
    """Functions of a dozen bytes that declare as many locals as validators let through."""
    body = _body(b"", [(locals_, V128)])
    return _module([NOTHING], [(0, body)] * functions)


def used_locals(count: int) -> bytes:
    """One function whose ``count`` locals are all set, and read in another order."""
    code = b"".join(b"\x41" + leb128(n & 63) + _set(n) for n in range(count))
    code += b"".join(_get((n * 7919) % count) + _set(n) for n in range(count))
    return _module([NOTHING], [(0, _body(code, [(count, I32)]))])


def nested_loops(depth: int) -> bytes:
    """A loop in a loop in a loop; each could be the one that is jumped back to."""
    code = b"\x03\x40" * depth + b"\x41\0\x0d\0" + (END + b"\x41\0\x0d\0") * (depth - 1) + END
    return _module([NOTHING], [(0, _body(code))])


def nested_ifs(depth: int) -> bytes:
    """An if in the arm of an if, each with an else."""
    code = b"\x41\0\x04\x40" * depth + b"\x05\x01\x0b" * depth
    return _module([NOTHING], [(0, _body(code))])


def branch_tables(tables: int, targets: int) -> bytes:
    """Jump tables with as many targets as fit, over nested blocks."""
    depth = 200
    table = b"\x41\0\x0e" + leb128(targets)
    table += b"".join(leb128(n % depth) for n in range(targets)) + b"\0"
    code = b"\x02\x40" * depth + (b"\x02\x40" + table + END) * tables + END * depth
    return _module([NOTHING], [(0, _body(code))])


def wide_blocks(values: int, branches: int) -> bytes:
    """Blocks that hand on ``values`` values at each of ``branches`` branches."""
    types = [NOTHING, _type(b"", I32 * values)]
    push = b"\x41\0" * values
    block = b"\x02\x01" + push + b"\x41\0\x0d\0" * branches + END + b"\x1a" * values
    return _module(types, [(0, _body(block))])


def long_expression(length: int) -> bytes:
    """One expression with ``length`` operands on the stack at once."""
    code = b"\x41\x01" * length + b"\x6a" * (length - 1) + b"\x1a"
    return _module([NOTHING], [(0, _body(code))])


def simd_lanes(count: int) -> bytes:
    """Vector shuffles one after the other, which become many instructions each."""
    zero = b"\xfd\x0c" + bytes(16)
    shuffle = b"\xfd\x0d" + bytes((7, 30, 2, 19, 4, 21, 11, 8, 9, 1, 3, 28, 12, 17, 14, 31))
    code = zero + (_get(0) + shuffle) * count + b"\x1a"
    return _module([NOTHING], [(0, _body(code, [(1, V128)]))])


def conversions(count: int) -> bytes:
    """Float to integer conversions, each with its checks for traps."""
    code = b"\x44" + bytes(8) + b"\xb0\xb9" * count + b"\x1a"
    return _module([NOTHING], [(0, _body(code))])


def indirect_calls(count: int) -> bytes:
    """Calls through a table: each is checked for bounds, null and signature."""
    code = b"\x41\0\x11\0\0" * count
    return _module([NOTHING], [(0, _body(code))], (4, b"\x01\x70\0\x01"))


def wide_calls(params: int, calls: int) -> bytes:
    """Calls of a function that takes ``params`` values and answers as many."""
    wide = I64 * params
    types = [NOTHING, _type(wide, wide)]
    code = b"\x42\0" * params + b"\x10\x01" * calls + b"\x1a" * params
    echo = b"".join(_get(n) for n in range(params))
    return _module(types, [(0, _body(code)), (1, _body(echo))])


def memory_accesses(count: int) -> bytes:
    """Loads, each with its own check of bounds."""
    code = (b"\x41\0\x28\x02\0\x1a") * count
    return _module([NOTHING], [(0, _body(code))], (5, b"\x01\0\x01"))


def many_types(count: int) -> bytes:
    """Signatures without functions."""
    kinds = (I32, I64, F64)
    types = [
        _type(b"".join(kinds[(n // 3**place) % 3] for place in range(12)), b"")
        for n in range(count)
    ]
    return _module(types, [])


def many_globals(count: int) -> bytes:
    """Globals, each with an initial value."""
    return _module([], [], (6, leb128(count) + b"\x7f\x01\x41\x2a\x0b" * count))


def many_exports(count: int, padding: int) -> bytes:
    """One function under many names."""
    exports = [leb128(padding + 8) + b"%08d" % n + b"x" * padding + b"\0\0" for n in range(count)]
    return _module([NOTHING], [(0, _body(b""))], (7, _vector(exports)))


def many_imports(count: int) -> bytes:
    """Imported functions of one type."""
    return _module([NOTHING], [], (2, leb128(count) + b"\x01a\x01b\0\0" * count))


def many_segments(count: int) -> bytes:
    """Data segments of one byte each, far from each other."""
    segments = [b"\0\x41" + signed_leb128(n * 640) + b"\x0b\x01x" for n in range(count)]
    return _module([], [], (5, b"\x01\0\x80\x80\x02"), (11, _vector(segments)))


def far_data() -> bytes:
    """Two bytes of data at both ends of a memory of 4 GiB."""
    ends = [b"\0\x41\0\x0b\x01x", b"\0\x41\x7f\x0b\x01x"]
    return _module([], [], (5, b"\x01\0\x80\x80\x04"), (11, _vector(ends)))


def large_table(entries: int) -> bytes:
    """A table that begins with ``entries`` places, one of which is filled."""
    return _module(
        [NOTHING],
        [(0, _body(b""))],
        (4, b"\x01\x70\0" + leb128(entries)),
        (9, b"\x01\0\x41\0\x0b\x01\0"),
    )


def large_elements(count: int) -> bytes:
    """A segment that names one function ``count`` times."""
    return _module(
        [NOTHING],
        [(0, _body(b""))],
        (4, b"\x01\x70\0" + leb128(count)),
        (9, b"\x01\0\x41\0\x0b" + leb128(count) + b"\0" * count),
    )


def custom_section(size: int) -> bytes:
    """A custom section, which wasmer keeps in its artifact."""
    return CORE_PREAMBLE + section(0, b"\x01x" + bytes(size))


def empty_sections(count: int) -> bytes:
    """Custom sections that hold nothing but their one letter of name."""
    return CORE_PREAMBLE + b"\0\x02\x01x" * count


def endless_vector() -> bytes:
    """A section that announces four thousand million types and has none."""
    return CORE_PREAMBLE + section(1, b"\xff\xff\xff\xff\x0f")


def fused_adapters(functions: int, cases: int) -> bytes:
    """A component whose two halves exchange values of many cases, translated in between."""
    numbers = range(functions)
    value = "(tuple u8 string (list (tuple f64 char)) s64)"
    shape = " ".join(f'(case "c{n}" {value})' for n in range(cases))
    flat = "(param i32 i32 i32 i32 i32 i32 i64)"
    memory = """(memory (export "m") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 0)"""
    aliases = """(alias core export $i "m" (core memory $m))
        (alias core export $i "realloc" (core func $r))"""
    exports = "\n".join(f'(func (export "f{n}") {flat})' for n in numbers)
    lifted = "\n".join(
        f'(alias core export $i "f{n}" (core func $f{n}))'
        f'(func (export "f{n}") (param "x" $v)'
        f" (canon lift (core func $f{n}) (memory $m) (realloc $r)))"
        for n in numbers
    )
    lowered = "\n".join(
        f'(alias export $a "f{n}" (func $f{n}))'
        f"(core func $l{n} (canon lower (func $f{n}) (memory $m) (realloc $r)))"
        for n in numbers
    )
    imported = "\n".join(f'(import "a" "f{n}" (func {flat}))' for n in numbers)
    handed = "\n".join(f'(export "f{n}" (func $l{n}))' for n in numbers)
    return wasm.from_text(f"""(component
      (component $callee
        (type $shape (variant {shape})) (export $v "v" (type $shape))
        (core module $m {memory} {exports}) (core instance $i (instantiate $m))
        {aliases} {lifted})
      (instance $a (instantiate $callee))
      (core module $libc {memory}) (core instance $i (instantiate $libc))
      {aliases} {lowered}
      (core module $caller {imported})
      (core instance (instantiate $caller (with "a" (instance {handed})))))""")


def many_instances(count: int) -> bytes:
    """A component that instantiates one core module again and again."""
    return wasm.from_text(
        '(component (core module $m (func (export "f")))'
        + " (core instance (instantiate $m))" * count
        + ")"
    )


def nested_components(depth: int) -> bytes:
    """A component in a component, each instantiated twice by the one around it."""
    text = "(component)"
    for _ in range(depth):
        text = (
            f"(component (component $c {text[len('(component') :]} (instance (instantiate $c))"
            " (instance (instantiate $c)))"
        )
    return wasm.from_text(text)


CATALOGUE = [
    Hostile(name, hurts_by, cache(build))
    for name, hurts_by, build in (
        (
            "nested-blocks",
            "a million blocks in one function",
            lambda: wasm.nested_blocks(1_000_000),
        ),
        ("live-locals", "locals live across branches", lambda: live_locals(4_000, 40_000)),
        ("many-functions", "small module, large artifact", lambda: wasm.many_functions(200_000)),
        ("many-locals", "declared locals", lambda: many_locals(600)),
        ("many-locals-5mb", "declared locals, as many as fit", lambda: many_locals(500_000)),
        ("used-locals", "registers", lambda: used_locals(50_000)),
        ("nested-loops", "loop nesting", lambda: nested_loops(100_000)),
        ("nested-ifs", "control flow joins", lambda: nested_ifs(300_000)),
        ("branch-tables", "jump tables", lambda: branch_tables(60, 60_000)),
        ("wide-blocks", "values at branches", lambda: wide_blocks(1_000, 20_000)),
        ("long-expression", "operands alive at once", lambda: long_expression(1_000_000)),
        ("simd-lanes", "vector shuffles", lambda: simd_lanes(200_000)),
        ("conversions", "code for traps", lambda: conversions(1_500_000)),
        ("indirect-calls", "checks of calls", lambda: indirect_calls(800_000)),
        ("wide-calls", "arguments", lambda: wide_calls(900, 5_000)),
        ("memory-accesses", "checks of bounds", lambda: memory_accesses(700_000)),
        ("many-types", "signatures", lambda: many_types(300_000)),
        ("many-globals", "globals", lambda: many_globals(700_000)),
        ("many-exports", "names", lambda: many_exports(90_000, 30)),
        ("long-exports", "long names", lambda: many_exports(50, 90_000)),
        ("many-imports", "imports", lambda: many_imports(90_000)),
        ("many-segments", "data segments", lambda: many_segments(90_000)),
        ("far-data", "memory image", far_data),
        ("large-table", "table image", lambda: large_table(9_000_000)),
        ("large-elements", "table image, filled", lambda: large_elements(4_000_000)),
        ("custom-section", "what is no code", lambda: custom_section(5_000_000)),
        ("empty-sections", "sections", lambda: empty_sections(1_200_000)),
        ("endless-vector", "a count that lies", endless_vector),
        ("fused-adapters", "translation between components", lambda: fused_adapters(200, 200)),
        ("many-instances", "instances", lambda: many_instances(900)),
        ("nested-components", "instances of instances", lambda: nested_components(14)),
    )
]
