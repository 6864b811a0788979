"""The processes of a daemon: which to kill, and what they hold."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import jobs_of, memory_of, workers_and_jobs, workers_of


@dataclass(frozen=True)
class Holdings:
    """What an idle daemon holds."""

    processes: int
    """Its workers, and the processes that belong to them."""
    descriptors: int
    """The daemon's own descriptors, idle connections to Redis included."""
    memory_bytes: int
    """Its own resident memory."""


def holdings(daemon_pid: int) -> Holdings:
    """Return what a daemon holds now."""
    return Holdings(
        len(workers_and_jobs(daemon_pid)),
        len(list(Path(f"/proc/{daemon_pid}/fd").iterdir())),
        memory_of(daemon_pid),
    )


def kill(daemon_pid: int, pid: int) -> bool:
    """Kill a worker or job of a daemon, and nobody who has its number by now.

    Answers whether there still was one.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Whoever this is, it stays the same from here on.
        if pid not in (*workers_of(daemon_pid), *jobs_of(daemon_pid)):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return False
    else:
        return True
    finally:
        os.close(handle)
