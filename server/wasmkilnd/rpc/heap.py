"""Memory that was freed goes back to the machine."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes

# Less than this is not worth looking for.
_WORTH_BYTES = 8 * 1024 * 1024
# gRPC frees what it held for a connection a moment after the connection has gone.
_DELAY_S = 2.0


class Peak:
    """Notes how much was held, and has it given back when all of it was let go.

    The C library keeps what gRPC frees, in arenas of many threads: without this, 500
    slow readers cost the daemon 150 MB for ever. For one event loop.
    """

    def __init__(self) -> None:
        self._most_bytes = 0

    def holds(self, size_bytes: int) -> None:
        """Note that so much is held now."""
        if size_bytes > self._most_bytes:
            self._most_bytes = size_bytes

    def over(self) -> None:
        """Note that nothing is held any more."""
        if self._most_bytes >= _WORTH_BYTES:
            loop = asyncio.get_running_loop()
            loop.call_later(_DELAY_S, loop.run_in_executor, None, _trim)
        self._most_bytes = 0


def _trim() -> None:
    with contextlib.suppress(AttributeError):  # A C library that has no such thing.
        ctypes.CDLL(None).malloc_trim(0)
