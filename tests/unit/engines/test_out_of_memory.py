"""Engines' words for a lack of memory, and names of modules that sound like them."""

from __future__ import annotations

import pytest
from wasmkilnd.engines.verdict import tells_out_of_memory

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
