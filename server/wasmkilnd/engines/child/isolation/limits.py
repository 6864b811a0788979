"""How long a process may live, and how much of the machine a job may use."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from . import kernel

# What getppid answers when the parent is outside of the process namespace.
_OUT_OF_SIGHT = 0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's main thread ends. Linux only.

    To be asked for again whenever the user changes, since the kernel forgets it then.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, _OUT_OF_SIGHT):
        os._exit(1)  # It ended before the kernel was asked.


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
