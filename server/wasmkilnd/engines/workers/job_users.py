"""Find a user for each worker and its jobs that no other process of the machine has.

Processes of one user may signal each other and lower each other's limits, however they are
confined. So a daemon that is root gives each worker a user, and the group of the same number,
that no other process has. A daemon that is not root cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534  # the user that owns nothing, by the kernel's own convention; services share it

# Ranges that no convention assigns, by systemd's table (UIDS-GIDS.md), shadow's (/etc/subuid) and
# SSSD's defaults. The first is so large that two daemons that cannot see each other hardly choose
# the same user. The second is for containers that have 65,536 users.
_RANGES = (range(2_000_400_000, 2_147_000_000), range(60_578, 61_184))
_ATTEMPTS = 100
_LAST_MOMENTS_S = 0.2


@dataclass(frozen=True, slots=True)
class JobUser:
    """The user that a worker becomes, if it is root."""

    uid: int = NOBODY
    # What else has this user, in words; empty if nothing is known to.
    shared_with: str = ""


class JobUsers:
    """Finds a user for each worker."""

    def __init__(self, configured: int = 0) -> None:
        """Give all workers the user ``configured``; with 0, give each worker its own."""
        self._configured = configured

    async def pick(self) -> JobUser:
        """Return the user for a worker that starts now."""
        return await asyncio.to_thread(self._pick)

    def _pick(self) -> JobUser:
        if os.geteuid() != 0:
            return JobUser()  # A worker keeps the daemon's user.
        if self._configured:
            if _process_of(self._configured):
                time.sleep(_LAST_MOMENTS_S)  # A job of a worker that has just ended may have it.
            return JobUser(self._configured, _owner_of(self._configured))
        for candidates in _RANGES:
            if all(_all_exist(candidates, file) for file in ("uid_map", "gid_map")):
                for uid in random.sample(candidates, _ATTEMPTS):
                    if not _owner_of(uid):
                        return JobUser(uid)
        return JobUser(NOBODY, "other processes of nobody: there is no free user in this container")


def _owner_of(uid: int) -> str:
    """Return what has a user or the group of its number, in words; empty for a free one."""
    with contextlib.suppress(KeyError):
        return f"the user {pwd.getpwuid(uid).pw_name}"
    with contextlib.suppress(KeyError):
        return f"the group {grp.getgrgid(uid).gr_name}"
    return _process_of(uid)


def _process_of(uid: int) -> str:
    """Return a process that has a user or group, except this one and its descendants.

    Zombies count as having no user: they run no code, and stay where init reaps no processes.
    """
    statuses: dict[str, dict[str, str]] = {}
    for file in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # The process has ended.
            fields = re.findall(r"^(\w+):\t(.*)$", file.read_text(errors="replace"), re.MULTILINE)
            statuses[file.parent.name] = dict(fields)
    for pid, status in statuses.items():
        ids = f"{status['Uid']} {status['Gid']} {status['Groups']}".split()
        ancestor = pid
        while ancestor in statuses and ancestor != str(os.getpid()):
            ancestor = statuses[ancestor]["PPid"]
        if str(uid) in ids and status["State"][0] not in "ZX" and ancestor != str(os.getpid()):
            return f"process {pid} ({status['Name']})"
    return ""


def _all_exist(ids: range, file: str) -> bool:
    """Return whether users or groups exist for this process, which may run in a container."""
    rows = (map(int, line.split()) for line in Path("/proc/self", file).read_text().splitlines())
    return any(first <= ids.start and ids.stop <= first + count for first, _, count in rows)
