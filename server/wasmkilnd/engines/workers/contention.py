"""Whether a job had to share the machine's CPUs, which decides what to blame for a timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NANOSECONDS = 1e9
# A daemon that used more of a CPU than this has taken it from its jobs for other calls.
_BUSY = 0.1


@dataclass(eq=False, slots=True)
class RunningJob:
    """One job, while it runs and after."""

    alone: bool
    """Whether no other job has run beside it so far, nor the daemon been busy with calls."""


class Neighbours:
    """The jobs of all engines that run now. For one event loop."""

    def __init__(self) -> None:
        self._running: set[RunningJob] = set()

    @contextmanager
    def job(self) -> Iterator[RunningJob]:
        """Count a job for as long as the context lasts."""
        for other in self._running:
            other.alone = False
        job = RunningJob(alone=not self._running)
        self._running.add(job)
        began_s, used_s = time.monotonic(), time.process_time()
        try:
            yield job
        finally:
            self._running.discard(job)
            lived_s = time.monotonic() - began_s
            if time.process_time() - used_s > _BUSY * lived_s:
                job.alone = False


def cpu_wait_s(pid: int) -> float | None:
    """Return how long the threads of a living process were ready and had no CPU, added up.

    Threads that have ended do not count. None where the kernel does not tell.
    """
    waited_ns = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            # Time on a CPU, time in a run queue, and the number of turns.
            waited_ns += int((thread / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited_ns / _NANOSECONDS
