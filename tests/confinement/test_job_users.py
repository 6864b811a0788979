"""A daemon that is root gives a worker and its jobs a user that no other process has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmkilnd.engines import process, users
from wasmkilnd.engines.child.sandbox import NOBODY
from wasmkilnd.engines.process import Worker
from wasmkilnd.engines.users import pick_user
from wasmkilnd.model import LayerState

from tests.confinement import workers
from tests.e2e.foreign import PYTHON, unused_user, user_of
from tests.e2e.processes import eventually, state_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")


@contextmanager
def service_of(user: int) -> Iterator[int]:
    """Another service on the machine; yields its pid."""
    program = (
        "import os, time; pid = os.fork(); print(pid) if pid else (os.close(1), time.sleep(60))"
    )
    command = [PYTHON, "-ISc", program]
    pid = int(subprocess.check_output(command, user=user, group=user, extra_groups=[], cwd="/"))
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: state_of(pid) in ("", "Z", "X"), "it does not end")


async def test_a_user_that_somebody_else_has_is_taken(confined_engine: Path) -> None:
    async with workers.running(confined_engine) as one, workers.running(confined_engine) as other:
        assert user_of(one.pid) != user_of(other.pid)
        assert users._is_taken(user_of(one.pid))
        assert privileges_of(one) == (
            LayerState.ENFORCED,
            f"user {user_of(one.pid)}, no capabilities, no core dumps",
        )
    assert users._is_taken(NOBODY)
    user = unused_user()
    assert not users._is_taken(user)
    with service_of(user):
        assert users._is_taken(user)


async def test_a_worker_that_shares_its_user_says_so(
    confined_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "pick_user", lambda: NOBODY)
    async with workers.running(confined_engine) as worker:
        state, detail = privileges_of(worker)
        assert state is LayerState.PARTIAL
        assert detail.startswith(f"user {NOBODY} is also that of other processes")
        assert worker.isolation.holds


async def test_a_user_that_only_a_zombie_has_is_free() -> None:
    """An init that reaps nothing keeps zombies for ever; here a parent keeps one."""
    user = unused_user()
    program = (
        "import os, sys, time; pid = os.fork();"
        " pid or (os.setresgid(*[int(sys.argv[1])] * 3), os.setresuid(*[int(sys.argv[1])] * 3),"
        " os._exit(0)); os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT); "
        " print('zombie', pid, flush=True); time.sleep(60)"
    )
    # The parent of this process keeps the zombie, and init the parent, so that both are others.
    launcher = (
        "import subprocess, sys; print('parent', subprocess.Popen(sys.argv[1:]).pid, flush=True)"
    )
    launched = subprocess.Popen(  # noqa: ASYNC220 - its two lines come at once
        [PYTHON, "-ISc", launcher, PYTHON, "-ISc", program, str(user)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launched.stdout
    pids = dict(launched.stdout.readline().split() for _ in range(2))
    try:
        assert state_of(int(pids["zombie"])) == "Z"
        assert not users._is_taken(user)
    finally:
        os.kill(int(pids["parent"]), signal.SIGKILL)
        launched.wait()
        launched.stdout.close()


def test_workers_that_start_at_once_get_different_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are few users, too: none of these has its user yet."""
    few = range(60_578, 60_600)
    monkeypatch.setattr(users, "_RANGES", (few,))
    assert {pick_user() for _ in few} == {*few}


@pytest.mark.parametrize(
    ("mapped", "range_"),
    [
        (("--map-users", "0,0,65536", "--map-groups", "0,0,65536"), range(60_578, 61_184)),
        (("--map-root-user",), range(NOBODY, NOBODY + 1)),
    ],
    ids=["65,536 users", "one user"],
)
def test_in_a_container(mapped: tuple[str, ...], range_: range) -> None:
    """If not every user exists, the daemon takes another range; if there is none, nobody."""
    program = "from wasmkilnd.engines.users import pick_user; print(pick_user())"
    done = subprocess.run(
        ["unshare", "--user", *mapped, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no such container can be made here: {done.stderr}")
    assert int(done.stdout) in range_


def privileges_of(worker: Worker) -> tuple[LayerState, str]:
    [found] = [layer for layer in worker.isolation.layers if layer.name == "privileges"]
    return found.state, found.detail
