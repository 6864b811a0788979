"""Processes of other services on the machine, which try to interfere with workers and jobs."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"
NOBODY = 65534
# Tests that run at the same time on this machine have other process ids, and so other users.
_users = itertools.count(20_000 + os.getpid() % 3_000 * 10)
_SIGNAL = "import os, sys; os.kill(*map(int, sys.argv[1:]))"
_LIMIT = (
    "import resource, sys; pid, what, limit = map(int, sys.argv[1:]);"
    " resource.prlimit(pid, what, (limit, limit))"
)


def unused_user() -> int:
    """Return a user that no other process has; two of these are never the same."""
    return next(_users)


def user_of(pid: int) -> int:
    """Return the user that a process runs as."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("Uid:\t")[2].split()[0])


def may_signal(user: int, pid: int, number: int = 0) -> bool:
    """Signal a process as ``user``; return whether that was allowed. 0 sends no signal."""
    return _run_as(user, _SIGNAL, pid, number)


def may_limit(user: int, pid: int, what: int, limit: int) -> bool:
    """Lower a limit of a process as ``user``; return whether that was allowed."""
    return _run_as(user, _LIMIT, pid, what, limit)


def spoil(pid: int, what: int = resource.RLIMIT_AS, limit: int = 2**30) -> None:
    """Lower a limit of a worker, and so of its jobs, as a process that has its user."""
    assert may_limit(user_of(pid), pid, what, limit)


def kill(pid: int) -> None:
    """Kill a process as another process that has its user."""
    assert may_signal(user_of(pid), pid, signal.SIGKILL)


def _run_as(user: int, program: str, *arguments: int) -> bool:
    """Run a program as a user and the group of the same number."""
    command = [PYTHON, "-ISc", program, *map(str, arguments)]
    try:
        done = subprocess.run(
            command,
            user=user,
            group=user,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    except PermissionError:
        pytest.skip("only root can start processes of other users")
    assert done.returncode == 0 or "PermissionError" in done.stderr, done.stderr
    return done.returncode == 0
