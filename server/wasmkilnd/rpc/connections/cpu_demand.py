"""How much of a CPU the daemon asks for, which is more than it gets where others keep it waiting.

A flood makes the daemon work as much as it can. On a machine that others keep busy that may be
less than an idle daemon gets on a quiet one, so the time that its threads wait for a CPU counts
too. The kernel has both for each thread (``schedstat``, see proc_pid_schedstat(5)).
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_NS = 1e-9
# Below this share a daemon was asked for nothing: even one of a hundred that wait gets more.
_IDLE = 0.01


class CpuDemand:
    """Compares looks. Each is cheap for a daemon that is idle."""

    def __init__(self, tasks: Path = Path("/proc/self/task")) -> None:
        self._tasks = tasks
        self._at_s, self._cpu_s = time.monotonic(), time.process_time()
        self._waited_ns: dict[str, int] = {}

    def look(self, now: float) -> float:
        """Return the share of a CPU that was used or waited for since the last look."""
        passed_s = max(now - self._at_s, 1e-3)
        cpu_s = time.process_time()
        used = (cpu_s - self._cpu_s) / passed_s
        self._at_s, self._cpu_s = now, cpu_s
        if used < _IDLE:
            self._waited_ns.clear()
            return used
        before, self._waited_ns = self._waited_ns, self._waited()
        # What a thread waited before it was first seen does not count.
        waited_ns = [ns - before[name] for name, ns in self._waited_ns.items() if name in before]
        # The longest: threads that wait for the same CPU wait at the same time.
        return used + max(waited_ns, default=0) * _NS / passed_s

    def _waited(self) -> dict[str, int]:
        waited = {}
        for task in self._tasks.iterdir():
            # A thread may have ended, and a kernel may not count.
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited[task.name] = int((task / "schedstat").read_text().split()[1])
        return waited
