"""A user for each worker.

Processes of one user may signal each other and lower each other's limits, however they are
confined. So a daemon that is root gives each worker a user, and the group of the same number, that
no other process has. A daemon that is not root cannot.
"""

from __future__ import annotations

import contextlib
import grp
import itertools
import os
import pwd
import re
import secrets
from pathlib import Path

from wasmkilnd.engines.child.sandbox import NOBODY

# Ranges that no convention assigns, by systemd's table (UIDS-GIDS.md), shadow's (/etc/subuid) and
# SSSD's defaults. The first is so large that two daemons that cannot see each other hardly choose
# the same user. The second is for containers that have 65,536 users.
_RANGES = (range(2_000_400_000, 2_147_000_000), range(60_578, 61_184))
_USER_ATTEMPTS = 100
# Each attempt takes the next one, so that workers that start at once do not choose the same.
_next_user = itertools.count(secrets.randbelow(2**31))


def pick_user() -> int:
    """Return the user for a worker that starts now. May block.

    Each has its own, or NOBODY where none is free.
    """
    if os.geteuid() != 0:
        return NOBODY  # A worker keeps the daemon's user.
    for candidates in _RANGES:
        if all(_all_exist(candidates, file) for file in ("uid_map", "gid_map")):
            for number in itertools.islice(_next_user, _USER_ATTEMPTS):
                if not _is_taken(uid := candidates[number % len(candidates)]):
                    return uid
    return NOBODY


def _is_taken(uid: int) -> bool:
    """Return whether a user or the group of its number has a name, or a process.

    Zombies count as having no user: they run no code, and stay where init reaps no processes.
    """
    for named in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            return bool(named(uid))
    for file in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # The process has ended.
            fields = re.findall(r"^(\w+):\t(.*)$", file.read_text(errors="replace"), re.MULTILINE)
            status = dict(fields)
            ids = f"{status['Uid']} {status['Gid']} {status['Groups']}".split()
            if str(uid) in ids and status["State"][0] not in "ZX":
                return True
    return False


def _all_exist(ids: range, file: str) -> bool:
    """Return whether users or groups exist for this process, which may run in a container."""
    rows = (map(int, line.split()) for line in Path("/proc/self", file).read_text().splitlines())
    return any(first <= ids.start and ids.stop <= first + count for first, _, count in rows)
