"""Which jobs had the machine to themselves, as far as this daemon decides it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# A daemon that used more of a CPU than this has taken it from its jobs for others' calls.
_BUSY = 0.1


@dataclass(eq=False, slots=True)
class Stay:
    """The life of one job."""

    alone: bool
    """Whether no other job has run beside it so far, nor the daemon been busy with calls."""


class Neighbours:
    """The jobs that run now, of all engines. For one event loop."""

    def __init__(self) -> None:
        self._running: set[Stay] = set()

    @contextmanager
    def stay(self) -> Iterator[Stay]:
        """Count a job for as long as the context lasts."""
        for other in self._running:
            other.alone = False
        mine = Stay(alone=not self._running)
        self._running.add(mine)
        began_s, used_s = time.monotonic(), time.process_time()
        try:
            yield mine
        finally:
            self._running.discard(mine)
            lived_s = time.monotonic() - began_s
            if time.process_time() - used_s > _BUSY * lived_s:
                mine.alone = False
