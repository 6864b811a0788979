"""A job starves that wants a CPU and gets none, while jobs get next to none."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd.engines.workers import contention, job_clock
from wasmkilnd.engines.workers.contention import Neighbours, RunningJob
from wasmkilnd.engines.workers.job_clock import JobClock
from wasmkilnd.model import Priority

_LIMIT_S = 5.0


class Machine:
    """Stand for the kernel, and for a clock that runs as fast as anybody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used_s = {1: 0.0, 2: 0.0}
        self.wait_s = 0.0
        self.wants_cpu = True
        self.may_change_classes = True
        self.taken_out: list[int] = []
        monkeypatch.setattr(job_clock, "_LOOK_S", 0.02)
        monkeypatch.setattr(job_clock, "wants_cpu", lambda pid: self.wants_cpu)
        monkeypatch.setattr(job_clock, "leave_idle_class", self._leave)
        monkeypatch.setattr(contention, "cpu_used_s", self.used_s.get)
        monkeypatch.setattr(contention, "cpu_wait_s", lambda pid: self.wait_s)

    def _leave(self, pid: int) -> bool:
        self.taken_out.append(pid)
        return self.may_change_classes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def clock_of(
    job: RunningJob,
    jobs: Neighbours,
    priority: Priority = Priority.IDLE,
    limit_s: float = _LIMIT_S,
) -> JobClock:
    job.pid = 1
    return JobClock(job, jobs, priority, limit_s)


async def looks() -> None:
    """Wait for a few looks."""
    await asyncio.sleep(0.3)


async def test_a_job_that_gets_nothing_leaves_the_idle_class_once(machine: Machine) -> None:
    jobs = Neighbours()
    with jobs.job() as job:
        async with clock_of(job, jobs):
            await looks()
    assert machine.taken_out == [1]
    assert jobs.machine_is_busy


async def test_a_job_that_cannot_leave_is_interrupted(machine: Machine) -> None:
    machine.may_change_classes = False
    jobs = Neighbours()
    with jobs.job() as job:
        clock = clock_of(job, jobs)
        with pytest.raises(TimeoutError):
            async with clock:
                await asyncio.sleep(60)
    assert clock.must_start_again


async def test_a_job_of_another_class_stays_where_it_is(machine: Machine) -> None:
    jobs = Neighbours()
    with jobs.job() as job:
        async with clock_of(job, jobs, Priority.LOW):
            await looks()
    assert not machine.taken_out


async def test_a_job_that_waits_for_something_else_does_not_starve(machine: Machine) -> None:
    """Such as for its module, or one that somebody stopped."""
    machine.wants_cpu = False
    jobs = Neighbours()
    with jobs.job() as job:
        async with clock_of(job, jobs):
            await looks()
    assert not machine.taken_out


async def test_a_job_whose_cpus_other_jobs_have_does_not_starve(machine: Machine) -> None:
    jobs = Neighbours()
    with jobs.job() as other, jobs.job() as job:
        other.pid = 2
        async with clock_of(job, jobs):
            for _ in range(30):
                machine.used_s[2] += 1.0
                await asyncio.sleep(0.01)
    assert not machine.taken_out


async def test_the_limit_is_the_limit_where_nobody_is_in_the_way(machine: Machine) -> None:
    jobs = Neighbours()
    with jobs.job() as job:
        machine.used_s[1] = 1.0
        clock = clock_of(job, jobs, Priority.NORMAL, limit_s=0.05)
        with pytest.raises(TimeoutError):
            async with clock:
                await asyncio.sleep(60)
        assert not clock.must_start_again


async def test_the_limit_grows_by_what_others_take(machine: Machine) -> None:
    jobs = Neighbours()
    machine.used_s[1] = machine.wait_s = 1.0
    with jobs.job() as job:
        async with clock_of(job, jobs, Priority.NORMAL, limit_s=0.2):
            await asyncio.sleep(0.3)  # Half of the time is others': it ends after 0.4 s.


async def test_the_limit_does_not_grow_for_ever(machine: Machine) -> None:
    jobs = Neighbours()
    machine.wait_s = 1e9
    with jobs.job() as job, pytest.raises(TimeoutError):
        async with clock_of(job, jobs, Priority.NORMAL, limit_s=0.05):
            await asyncio.sleep(60)
