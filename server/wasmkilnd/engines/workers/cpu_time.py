"""Read what the threads of another process used of the CPUs, and whether they want more."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_NANOSECONDS = 1e9
# From linux/posix-timers.h: the clock of a process, not of a thread, that counts time on a CPU.
_PROCESS_CPU_CLOCK = 2
_READY = "R"  # running, or waiting for nothing but a CPU: proc_pid_stat(5)
# A job of many threads starts threads while their list is read.
_MOST_PASSES = 5


def cpu_used_s(pid: int) -> float | None:
    """Return how much CPU time all threads of a process used; None if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | _PROCESS_CPU_CLOCK)
    except OSError:
        return None


def cpu_wait_s(pid: int) -> float | None:
    """Return how long the threads of a living process were ready and had no CPU, added up.

    Threads that have ended do not count. None where the kernel does not tell.
    """
    waited_ns = 0
    try:
        for thread in _threads(pid):
            # Time on a CPU, time in a run queue, and the number of turns.
            waited_ns += int((thread / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited_ns / _NANOSECONDS


def wants_cpu(pid: int) -> bool:
    """Return whether a thread of a process runs, or would if it had a CPU."""
    with contextlib.suppress(OSError):  # The process has ended.
        for thread in _threads(pid):
            with contextlib.suppress(OSError, IndexError):  # The thread has ended.
                # The name before the state may contain anything.
                if (thread / "stat").read_text().rpartition(")")[2].split()[0] == _READY:
                    return True
    return False


def leave_idle_class(pid: int) -> bool:
    """Have all threads of a process compete at their niceness; return whether that succeeded.

    It takes CAP_SYS_NICE, or a process of this user whose RLIMIT_NICE allows it.
    """
    seen: set[int] = set()
    try:
        for _ in range(_MOST_PASSES):
            threads = {int(thread.name) for thread in _threads(pid)} - seen
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):  # It has ended.
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            seen |= threads
            if not threads:
                break
    except PermissionError:
        return False
    except OSError:
        pass  # The process has ended.
    return True


def _threads(pid: int) -> list[Path]:
    """Raise OSError if the process has ended."""
    return list(Path(f"/proc/{pid}/task").iterdir())
