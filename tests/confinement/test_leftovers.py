"""A job leaves nothing behind for the next one, and a worker leaves nothing when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from wasmkilnd.engines.process import WorkerDied

from tests.confinement import workers
from tests.confinement.workers import attempt, children_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_how_many_descriptors_the_daemon_has_open_changes_nothing(
    confined_engine: Path,
) -> None:
    """A daemon has one for each connection, and a worker may have to be replaced at any time."""
    with ExitStack() as opened:
        for _ in range(100):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        async with workers.running(confined_engine) as worker:
            assert worker.isolation.attempts["descriptors"]
            assert (await attempt(worker, "descriptors")).got == [0, 1, 2, 3]


async def test_nothing_outlives_a_worker(confined_engine: Path) -> None:
    async with workers.running(confined_engine) as worker:
        processes = [worker.pid, *children_of(worker.pid)]
        assert len(processes) == 2  # It and the one that holds its process namespace.
        os.kill(worker.pid, signal.SIGKILL)
    await end_of(*processes)


async def test_a_worker_whose_process_namespace_has_gone_does_not_go_on(
    confined_engine: Path,
) -> None:
    async with workers.running(confined_engine) as worker:
        [holder] = children_of(worker.pid)
        os.kill(holder, signal.SIGKILL)
        await end_of(holder)
        with pytest.raises(WorkerDied):
            await attempt(worker, "find")


async def end_of(*pids: int) -> None:
    """Wait until processes have ended; a zombie has ended too."""
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
