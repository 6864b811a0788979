"""The processes of a daemon: which to kill, and what they hold."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import parent_of, workers_and_jobs

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Holdings:
    """What a daemon that has nothing to do holds."""

    processes: int
    """Its workers, and whatever belongs to them."""
    descriptors: int
    """Its own, without what it has connected to Redis: those it keeps, up to a number."""
    memory_bytes: int
    """Its own resident memory."""


def holdings(daemon_pid: int) -> Holdings:
    """Answer what a daemon holds now."""
    return Holdings(
        len(workers_and_jobs(daemon_pid)),
        len(list(Path(f"/proc/{daemon_pid}/fd").iterdir())),
        memory_bytes(daemon_pid),
    )


def memory_bytes(pid: int) -> int:
    """Answer the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def workers(daemon_pid: int) -> list[int]:
    """Answer the workers of a daemon."""
    return sorted(pid for pid in _with_parent(workers_and_jobs(daemon_pid), {daemon_pid}))


def jobs(daemon_pid: int) -> list[int]:
    """Answer the jobs of a daemon: what its workers forked, and leads a process group."""
    mine = workers_and_jobs(daemon_pid)
    found = _with_parent(mine, set(_with_parent(mine, {daemon_pid})))
    return sorted(pid for pid in found if _leads_a_group(pid))


def kill(daemon_pid: int, pid: int) -> bool:
    """Kill a worker or job of a daemon, and nobody who has its number by now.

    Answers whether there still was one.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # It has the number for as long as the handle is open.
        if pid not in workers_and_jobs(daemon_pid):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            return True
        return False
    finally:
        os.close(handle)


def _with_parent(pids: set[int], parents: set[int]) -> Iterator[int]:
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if parent_of(pid) in parents:
                yield pid


def _leads_a_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False
