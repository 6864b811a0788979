"""Jobs have the priority that the order says, and end even where others want all CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkilnd.engines.workers import job_clock, process
from wasmkilnd.engines.workers.contention import Neighbours
from wasmkilnd.engines.workers.cpu_time import leave_idle_class
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.engines.workers.pool import WorkerPool
from wasmkilnd.engines.workers.process import JobStarved, Worker
from wasmkilnd.engines.workers.spawn import start_worker
from wasmkilnd.model import Priority
from wasmkilnd.reloadable import Reloadable

from tests.confinement.workers import Outcome, attempt, job_of, order, running
from tests.doubles.notes import Notes
from tests.unit.engines.limits import LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="module")

# As many processes on the job's CPU leave a job in the idle class a seven-hundredth of it, one of
# low priority a seventh, and one like themselves a third.
_CROWD = 2
_BUSY_LOOP = "import time\nuntil = time.monotonic() + 120\nwhile time.monotonic() < until: pass"
_OURS = os.getpriority(os.PRIO_PROCESS, 0)
_CLASSES = {
    Priority.IDLE: (os.SCHED_IDLE, max(5, _OURS)),
    Priority.LOW: (os.SCHED_OTHER, max(5, _OURS)),
    Priority.NORMAL: (os.SCHED_OTHER, _OURS),
}


def class_of(pid: int) -> tuple[int, int]:
    return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)


@contextmanager
def busy_cpu() -> Iterator[None]:
    """Let this process, its workers and busy loops share one CPU."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usual)[-1:])
    loops: list[subprocess.Popen[bytes]] = []
    try:
        loops += [subprocess.Popen([sys.executable, "-c", _BUSY_LOOP]) for _ in range(_CROWD)]
        yield
    finally:
        os.sched_setaffinity(0, usual)
        for loop in loops:
            loop.kill()
            loop.wait()


@asynccontextmanager
async def pool_of(engine: Path, jobs: Neighbours, notes: Notes) -> AsyncIterator[WorkerPool]:
    async def start() -> Worker:
        return await start_worker(engine / "bin" / "python", "wasmtime", 2, await JobUsers().pick())

    limits = replace(LIMITS, queue_length=8, queue_bytes=2**20)
    pool = WorkerPool(
        "wasmtime-0.0.1",
        start,
        size=1,
        limits=Reloadable(limits),
        recorder=notes,
        neighbours=jobs,
    )
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
def may_not_change_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel says to a daemon that is not root."""
    for module in (job_clock, process):
        monkeypatch.setattr(module, "leave_idle_class", lambda pid: False)


@pytest.fixture
def stays_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run on busy machines, too."""
    monkeypatch.setattr(job_clock, "_LOOK_S", 1000)


@pytest.mark.usefixtures("stays_idle")
@pytest.mark.parametrize("priority", Priority)
async def test_a_job_runs_in_the_class_of_its_order(confined: Worker, priority: Priority) -> None:
    async with job_of(confined, priority) as job:
        assert class_of(job) == _CLASSES[priority]
    assert class_of(confined.pid) == (os.SCHED_OTHER, _OURS)


@pytest.mark.parametrize("way", ["compete", "go_first"])
async def test_a_job_cannot_leave_the_idle_class(confined: Worker, way: str) -> None:
    assert (await attempt(confined, way, priority=Priority.IDLE)).refused == "EPERM"


@pytest.mark.usefixtures("stays_idle")
async def test_the_daemon_takes_a_job_out_of_the_idle_class_where_it_may(confined: Worker) -> None:
    async with job_of(confined, Priority.IDLE) as job:
        if not leave_idle_class(job):
            pytest.skip("this user may not change classes")
        assert class_of(job) == _CLASSES[Priority.LOW]


async def test_a_starved_job_goes_on_at_low_priority(confined_engine: Path) -> None:
    with busy_cpu():
        jobs = Neighbours()
        async with running(confined_engine) as worker:
            async with job_of(worker, Priority.IDLE) as job:
                if not leave_idle_class(job):
                    pytest.skip("this user may not change classes")
            starved = order("use_cpu", 0.3, priority=Priority.IDLE)
            with capture_logs() as logs:
                assert Outcome(await worker.run(starved, jobs)).got == 0.3
            assert jobs.machine_is_busy
            assert [line["log_level"] for line in logs] == ["info"]
            # The next one does not wait until it starves.
            assert jobs.priority(Priority.IDLE) is Priority.LOW


@pytest.mark.usefixtures("may_not_change_classes")
async def test_a_starved_job_that_stays_idle_ends_with_its_worker(bare_engine: Path) -> None:
    with busy_cpu():
        async with running(bare_engine) as worker:
            with pytest.raises(JobStarved):
                await attempt(worker, "use_cpu", 0.3, priority=Priority.IDLE)
            assert worker.process.returncode is not None


@pytest.mark.usefixtures("may_not_change_classes")
async def test_a_starved_job_that_stays_idle_starts_again(confined_engine: Path) -> None:
    with busy_cpu():
        jobs = Neighbours()
        notes = Notes()
        async with pool_of(confined_engine, jobs, notes) as pool:
            report, _ = await pool.run(order("use_cpu", 0.3, priority=Priority.IDLE))
        assert Outcome(report).got == 0.3
        assert jobs.machine_is_busy
        assert notes.starved == ["wasmtime-0.0.1"]
        assert not notes.replaced  # Nothing was wrong with the worker.


async def test_time_that_others_take_does_not_count(
    bare_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job gets a third of its CPU at most, so it needs more than its limit."""
    # Beside other tests it may get so little that it would need more than the usual four times.
    monkeypatch.setattr(job_clock, "MOST_TIMES_ITS_LIMIT", 40)
    with busy_cpu():
        async with running(bare_engine) as worker:
            outcome = await attempt(worker, "use_cpu", 0.6, timeout_s=1.5)
    assert outcome.got == 0.6
    assert outcome.report.elapsed_s > 1.5


async def test_an_endless_job_ends_on_a_busy_machine_too(bare_engine: Path) -> None:
    with busy_cpu():
        async with running(bare_engine) as worker:
            outcome = await attempt(worker, "burn_cpu", timeout_s=0.5)
    assert outcome.report.timed_out
