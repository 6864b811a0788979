"""A user for each worker and its jobs that no other process of the machine has.

Processes of one user may signal each other and lower each other's limits, whatever they are
confined by. So a daemon that is root gives each worker a user, and the group of the same
number, that nobody else has; no other daemon can.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534  # the user that owns nothing, by the kernel's own convention; services share it

# Ranges that no convention gives to anybody, by systemd's table (UIDS-GIDS.md) and SSSD's
# defaults. The first is so large that two daemons do not meet in it though they see nothing of
# each other. The second is for containers that have 65,536 users.
_RANGES = (range(2_000_400_000, 2_147_000_000), range(60_578, 61_184))
_ATTEMPTS = 100
_LAST_MOMENTS_S = 0.2
_ENDED = "ZX"  # states of a process in /proc/PID/status (proc(5)): a zombie, and dead


@dataclass(frozen=True, slots=True)
class JobUser:
    """Who a worker becomes, if it is root."""

    uid: int = NOBODY
    shared_with: str = ""
    """Who else has this user, in words; empty if nobody is known to."""


class JobUsers:
    """Finds a user for each worker."""

    def __init__(self, configured: int = 0) -> None:
        """Give all workers the user ``configured``; with 0, each one of its own."""
        self._configured = configured

    async def pick(self) -> JobUser:
        """Return the user for a worker that starts now."""
        return await asyncio.to_thread(self._pick)

    def _pick(self) -> JobUser:
        if os.geteuid() != 0:
            return JobUser()  # It stays the daemon's.
        others = dict(_users_of_others())
        if self._configured:
            if self._configured in others:
                time.sleep(_LAST_MOMENTS_S)  # It may be a job of a worker that has just ended.
                others = dict(_users_of_others())
            return JobUser(self._configured, _owner_of(self._configured, others))
        mapped = [_mapped_ids("uid_map"), _mapped_ids("gid_map")]
        for candidates in _RANGES:
            if not all(any(_within(candidates, ids) for ids in each) for each in mapped):
                continue
            for _ in range(_ATTEMPTS):
                uid = random.choice(candidates)  # noqa: S311 - not a secret
                if not _owner_of(uid, others):
                    return JobUser(uid)
        return JobUser(NOBODY, "whoever else is nobody: there is no free user in this container")


def _owner_of(uid: int, others: dict[int, str]) -> str:
    """Say who has a user or the group of its number; return nothing for one that is free."""
    with contextlib.suppress(KeyError):
        return f"the user {pwd.getpwuid(uid).pw_name}"
    with contextlib.suppress(KeyError):
        return f"the group {grp.getgrgid(uid).gr_name}"
    for file in ("/etc/subuid", "/etc/subgid"):
        for name, ids in _subordinate_ids(Path(file)):
            if uid in ids:
                return f"the containers of {name}"
    return others.get(uid, "")


def _users_of_others() -> Iterator[tuple[int, str]]:
    """Find the users and groups of all processes but this one and those that it started."""
    statuses = dict(_statuses())
    for pid, (_, ids, name) in statuses.items():
        ancestor = pid
        while ancestor in statuses and ancestor != os.getpid():
            ancestor = statuses[ancestor][0]
        if ancestor != os.getpid():
            yield from ((one, f"process {pid} ({name})") for one in ids)


def _statuses() -> Iterator[tuple[int, tuple[int, set[int], str]]]:
    """Find each process's parent, users and groups, and name.

    Zombies count as having no user: they run no code, and an init that reaps nobody keeps them.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, KeyError, ValueError):  # It has ended.
            lines = (entry / "status").read_text(errors="replace").splitlines()
            said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            ids = {int(one) for name in ("Uid", "Gid", "Groups") for one in said[name].split()}
            if said["State"][0] in _ENDED:
                ids = set()
            yield int(entry.name), (int(said["PPid"]), ids, said["Name"])


def _mapped_ids(name: str) -> Sequence[range]:
    """Return the ids that there are for this process, which may be a container's."""
    rows = (line.split() for line in Path(f"/proc/self/{name}").read_text().splitlines())
    return [range(int(first), int(first) + int(count)) for first, _, count in rows]


def _within(inner: range, outer: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def _subordinate_ids(file: Path) -> Iterator[tuple[str, range]]:
    with contextlib.suppress(OSError):
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                name, first, count = line.split(":")
                yield name, range(int(first), int(first) + int(count))
