"""Return memory that the daemon freed to the machine.

glibc keeps the holes in its heap until malloc_trim is called. That call does not reach the ends
of heaps that single threads have: ``configure_malloc`` leaves the process one heap for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_INTERVAL_S = 1.0
WORTH_BYTES = 16 * 1024 * 1024
"""A trim takes about 0.1 ms for each MiB, and threads that allocate wait for it: keep less."""
_IN_VAIN_BYTES = 1024 * 1024
_MOST_SKIPPED = 30

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Larger blocks are mapped one by one, and go back to the machine when they are freed.
_MAPPED_BYTES = 1024 * 1024
# So much may stay unused at the end of the heap until the next look: with 4 MiB, each hit of a
# large artifact faults its buffers in again, which takes an eighth of its time.
_KEPT_BYTES = 64 * 1024 * 1024


def configure_malloc() -> None:
    """Make glibc return large blocks as they are freed. Call this before threads start.

    By default glibc adapts to the first large block that is freed: from then on it keeps blocks
    of that size, and twice as much at the end of each thread's heap, which malloc_trim does not
    shorten. Requests of 16 MiB arrive in the heaps of gRPC's threads: 30 of them left 94 MiB
    behind. So all threads share one heap, whose end malloc_trim returns. This costs little: two
    threads hardly ever allocate at once, as most of what they do is Python.
    """
    with contextlib.suppress(AttributeError):  # Not glibc.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)


class MallocTrim:
    """Makes glibc return what it keeps, as soon as that is much."""

    def __init__(self, spare_bytes: Callable[[], int], trim: Callable[[], object]) -> None:
        """Call ``trim`` by ``spare_bytes``: about how much memory is resident and not in use."""
        self._spare_bytes = spare_bytes
        self._trim = trim
        self._least_bytes = self._left_bytes = spare_bytes()
        self._in_vain = 0
        self._skipped = 0

    @classmethod
    def of_this_process(cls) -> MallocTrim:
        """Return one for this process; it does nothing with a C library that is not glibc."""
        libc = ctypes.CDLL(None)
        if not (hasattr(libc, "malloc_trim") and hasattr(libc, "mallinfo")):
            return cls(lambda: 0, lambda: None)
        heap = _Heap(libc)
        return cls(
            lambda: _resident_bytes() - heap.bytes_in_use(),
            lambda: libc.malloc_trim(ctypes.c_size_t(0)),
        )

    async def run(self) -> None:
        """Check once a second, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            # In a thread: Python runs on, and only threads that need the heap wait.
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Trim if there is much to spare; the more trims were in vain, the less often."""
        spare_bytes = self._spare_bytes()
        self._least_bytes = min(self._least_bytes, spare_bytes)
        if spare_bytes - self._least_bytes < WORTH_BYTES:
            return
        # glibc cannot return parts of pages between blocks in use, so a trim that returned nothing
        # is repeated less often. But memory may have been freed since then: look at the growth.
        grew = spare_bytes - self._left_bytes >= WORTH_BYTES
        if not grew and self._skipped < min(self._in_vain, _MOST_SKIPPED):
            self._skipped += 1
            return
        self._trim()
        self._left_bytes = self._spare_bytes()
        self._in_vain = self._in_vain + 1 if spare_bytes - self._left_bytes < _IN_VAIN_BYTES else 0
        self._skipped = 0


class _Heap:
    """Reads the statistics of the C library's allocator."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        # Before glibc 2.33 only the function with 32-bit numbers exists.
        wide = hasattr(libc, "mallinfo2")
        number = ctypes.c_size_t if wide else ctypes.c_uint

        class Info(ctypes.Structure):
            _fields_ = tuple(
                (name, number)
                for name in (
                    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
                    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
                )
            )

        self._ask = libc.mallinfo2 if wide else libc.mallinfo
        self._ask.restype = Info

    def bytes_in_use(self) -> int:
        """Return the bytes of all blocks that are allocated, mapped ones included."""
        info = self._ask()
        return int(info.uordblks) + int(info.hblkhd)


def _resident_bytes() -> int:
    """Return the memory that this process has resident, apart from files; 0 without /proc."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES
