"""The C library's allocator, told to keep little of what is freed."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Larger blocks are mapped one by one, and go back to the machine when they are freed.
_MAPPED_BYTES = 1024 * 1024
# So much may stay unused at the end of the heap.
_KEPT_BYTES = 4 * 1024 * 1024


def keep_little() -> None:
    """Have large blocks given back as they are freed. Call it before threads begin.

    By default glibc learns from the first large block that is freed: those of its size are
    kept from then on, and twice as much at the end of each thread's heap, which malloc_trim does
    not shorten. Requests of 16 MiB arrive in the heaps of gRPC's threads: 30 of them left 94 MiB
    behind. So all threads share one heap, whose end malloc_trim gives back.
    Hardly any two threads allocate at once: most of what they do is Python.
    """
    with contextlib.suppress(AttributeError):  # A C library that has no such thing.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)
