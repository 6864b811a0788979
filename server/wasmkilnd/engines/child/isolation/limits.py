"""How long a process may live, and how much of the machine a job may use, and did."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Any

from . import kernel, syscalls

# The highest oom_score_adj: as if it had all of the machine's memory.
_FIRST_TO_GO = 1000

# What getppid answers when the parent is outside of the process namespace.
_OUT_OF_SIGHT = 0
# A struct rusage is all longs: seconds and microseconds as a user and in the kernel, the most
# kibibytes resident, and more.
_USAGE_LONGS = 18


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's main thread ends. Linux only.

    To be asked for again whenever the user changes, since the kernel forgets it then.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, _OUT_OF_SIGHT):
        os._exit(1)  # It ended before the kernel was asked.


def be_killed_first() -> None:
    """Have a kernel that runs out of memory kill this process, and what it starts, before others.

    A compile can be done again, while a daemon that is killed fails all that it serves.
    Raises OSError.
    """
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_FIRST_TO_GO))


def limit(wanted: dict[str, Any], mapped_bytes: int) -> None:
    """Set the limits of a job.

    ``memory_bytes`` counts what the job maps beyond ``mapped_bytes``, what it has when it
    starts; ``cpu_s`` counts the time of all its threads.
    """
    memory = int(wanted["memory_bytes"]) + mapped_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    cpu = int(wanted["cpu_s"])
    # The hard limit a second later kills a process that does not die of SIGXCPU.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))


def used_by(pid: int, machine: str) -> dict[str, int]:
    """Answer what a child that has ended, and is not reaped, used: ``cpu_ms`` of all its threads,
    and ``peak_memory_bytes`` resident. Zeros where the kernel does not tell.
    """
    usage = (ctypes.c_long * _USAGE_LONGS)()
    try:
        # The library's waitid leaves this out, and its wait4 reaps.
        syscalls.make("waitid", machine, os.P_PID, pid, None, os.WEXITED | os.WNOWAIT, usage)
    except OSError:
        return {"cpu_ms": 0, "peak_memory_bytes": 0}
    user_s, user_us, kernel_s, kernel_us, peak_kib = usage[:5]
    cpu_ms = (user_s + kernel_s) * 1000 + (user_us + kernel_us) // 1000
    return {"cpu_ms": cpu_ms, "peak_memory_bytes": peak_kib * 1024}
