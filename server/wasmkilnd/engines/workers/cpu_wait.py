"""How long a process was ready to run and had no CPU, by the kernel's account."""

from __future__ import annotations

from pathlib import Path

_NANOSECONDS = 1e9


def cpu_wait_s(pid: int) -> float | None:
    """Return how long the threads of a living process have waited for a CPU, added up.

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
