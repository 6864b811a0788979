"""How one knows by an engine's words that a limit on memory has stopped it."""

from __future__ import annotations

import re

# What engines, their allocators and Python say when RLIMIT_AS stops them. Rust's
# allocator aborts with the first; mmap's failure arrives as one of the others.
_SIGNS = (
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
_REFUSED = re.compile(r"memory allocation of (\d{1,19}) bytes")
# An apostrophe within a word quotes nothing.
_QUOTATION = re.compile(r"[`\"]|(?<!\w)'")


def is_said_in(words: str) -> bool:
    """Return whether the engine says so itself, in one message or one line of a panic.

    Nothing counts from the first quotation mark on: names of the module are quoted, and
    somebody calls an export ``onMemoryError``, or whatever else would be taken for a sign.
    """
    own = _QUOTATION.split(_PANIC.sub("", words), maxsplit=1)[0].lower()
    return any(sign in own for sign in _SIGNS)


def refused_bytes(words: str) -> int:
    """Return how much was asked for and not given, as far as the words tell; else 0.

    It can be most of what a job wanted: a table that grows is refused when half of it is there.
    """
    refused = _REFUSED.search(words)
    return int(refused[1]) if refused else 0
