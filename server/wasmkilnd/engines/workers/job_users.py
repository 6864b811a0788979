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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534  # the user that owns nothing, by the kernel's own convention; services share it

# Ranges that no convention assigns, by systemd's table (UIDS-GIDS.md) and SSSD's defaults. The
# first is so large that two daemons that cannot see each other hardly choose the same user. The
# second is for containers that have 65,536 users.
_RANGES = (range(2_000_400_000, 2_147_000_000), range(60_578, 61_184))
_ATTEMPTS = 100
_LAST_MOMENTS_S = 0.2
_ENDED = "ZX"  # states of a process in /proc/PID/status (proc(5)): a zombie, and dead


@dataclass(frozen=True, slots=True)
class JobUser:
    """The user that a worker becomes, if it is root."""

    uid: int = NOBODY
    shared_with: str = ""
    """What else has this user, in words; empty if nothing is known to."""


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
        others = dict(_users_of_others())
        if self._configured:
            if self._configured in others:
                time.sleep(_LAST_MOMENTS_S)  # A job of a worker that has just ended may have it.
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
        return JobUser(NOBODY, "other processes of nobody: there is no free user in this container")


def _owner_of(uid: int, others: dict[int, str]) -> str:
    """Return what has a user or the group of its number, in words; empty for a free one."""
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
    """Yield the users and groups of all processes except this one and its descendants."""
    statuses = dict(_statuses())
    for pid, (_, ids, name) in statuses.items():
        ancestor = pid
        while ancestor in statuses and ancestor != os.getpid():
            ancestor = statuses[ancestor][0]
        if ancestor != os.getpid():
            yield from ((one, f"process {pid} ({name})") for one in ids)


def _statuses() -> Iterator[tuple[int, tuple[int, set[int], str]]]:
    """Yield each process with its parent, users and groups, and name.

    Zombies count as having no user: they run no code, and stay where init reaps no processes.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, KeyError, ValueError):  # The process has ended.
            lines = (entry / "status").read_text(errors="replace").splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            ids = {int(one) for name in ("Uid", "Gid", "Groups") for one in fields[name].split()}
            if fields["State"][0] in _ENDED:
                ids = set()
            yield int(entry.name), (int(fields["PPid"]), ids, fields["Name"])


def _mapped_ids(name: str) -> Sequence[range]:
    """Return the ids that exist for this process, which may run in a container."""
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
