"""Lower the priority of a job, before it is sealed. A sealed job cannot change it."""

from __future__ import annotations

import os
import struct

from . import kernel, syscalls

IDLE, LOW, NORMAL = "idle", "low", "normal"

_LOW_NICENESS = 5
_SCHED_IDLE = 5


def lower_to(priority: str) -> None:
    """Give this process the priority ``idle``, ``low`` or ``normal``.

    An idle job is niced as well, so that it has the priority ``low`` once the daemon takes it out
    of the idle class. A kernel or a container that refuses leaves it where it is: a job that
    compiles at a higher priority is better than none.
    """
    if priority == NORMAL:
        return
    kernel.why_not(lambda: os.setpriority(os.PRIO_PROCESS, 0, _LOW_NICENESS))
    if priority == IDLE:
        kernel.why_not(_become_idle)


def _become_idle() -> None:
    # Not by the standard library: musl's function of this name does nothing.
    syscalls.make("sched_setscheduler", kernel.machine(), 0, _SCHED_IDLE, struct.pack("=i", 0))
