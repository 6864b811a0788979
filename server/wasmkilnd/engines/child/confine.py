"""What a job may use, set in the job before it sees a byte of the module."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's main thread ends. Linux only."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # It ended before the kernel was asked.


def limit(limits: dict[str, Any]) -> None:
    """Set the limits of a job.

    ``memory_bytes`` counts what the job maps beyond what it has when it starts;
    ``cpu_s`` counts the time of all its threads.
    """
    memory = int(limits["memory_bytes"]) + _mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    cpu = int(limits["cpu_s"])
    # The hard limit a second later kills a process that does not die of SIGXCPU.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _mapped_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()
