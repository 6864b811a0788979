"""A job is alone if no other ran beside it; it is held up by processes that are no jobs."""

from __future__ import annotations

import time

import pytest
from wasmkilnd.engines.workers import contention
from wasmkilnd.engines.workers.contention import Hindrance, Neighbours
from wasmkilnd.model import Priority


class Clocks:
    """Stand for the clock on the wall and for the daemon's CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.used_s = 100.0, 7.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "process_time", lambda: self.used_s)

    def pass_by(self, seconds: float, used_s: float = 0.0) -> None:
        self.now_s += seconds
        self.used_s += used_s


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_one_after_the_other_are_alone(clocks: Clocks) -> None:
    jobs = Neighbours()
    for _ in range(2):
        with jobs.job() as one:
            clocks.pass_by(10, used_s=0.5)
        assert one.alone


def test_all_that_overlap_are_not_alone_to_their_end(clocks: Clocks) -> None:
    jobs = Neighbours()
    with jobs.job() as first:
        with jobs.job() as second:
            clocks.pass_by(1)
        with jobs.job() as third:
            clocks.pass_by(1)
        clocks.pass_by(100)
    assert [first.alone, second.alone, third.alone] == [False] * 3
    with jobs.job() as later:
        clocks.pass_by(1)
    assert later.alone


def test_beside_a_daemon_that_is_busy_with_calls_none_is_alone(clocks: Clocks) -> None:
    with Neighbours().job() as one:
        clocks.pass_by(10, used_s=1.5)
    assert not one.alone


class Processes:
    """Stand for the kernel's account of the jobs, by pid."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used_s: dict[int, float] = {}
        self.waited_s: dict[int, float | None] = {}
        monkeypatch.setattr(contention, "cpu_used_s", self.used_s.get)
        monkeypatch.setattr(contention, "cpu_wait_s", self.waited_s.get)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    return Processes(monkeypatch)


def test_the_time_of_jobs_that_ended_counts_on(processes: Processes) -> None:
    jobs = Neighbours()
    with jobs.job() as one, jobs.job() as other:
        one.pid, other.pid = 1, 2
        processes.used_s |= {1: 3.0, 2: 4.0}
        assert jobs.used_s() == 7
        processes.used_s.clear()  # Both have ended, and their worker has said what they used.
        one.used_s = 3.5
        assert jobs.used_s() == 7.5
    assert jobs.used_s() == 7.5


def test_a_job_beside_nobody_is_not_held_up(processes: Processes) -> None:
    jobs = Neighbours()
    with jobs.job() as job:
        job.pid = 1
        hindrance = Hindrance(job, jobs)
        processes.used_s[1], processes.waited_s[1] = 10.0, 0.0
        assert hindrance.held_up_s(10) == 0


def test_a_job_is_held_up_by_other_processes(processes: Processes) -> None:
    jobs = Neighbours()
    with jobs.job() as job:
        job.pid = 1
        hindrance = Hindrance(job, jobs)
        processes.used_s[1], processes.waited_s[1] = 5.0, 15.0  # of two threads
        assert hindrance.held_up_s(10) == pytest.approx(7.5)


def test_a_job_is_not_held_up_by_other_jobs(processes: Processes) -> None:
    """Or else strangers could make each other's jobs live longer, and the queue slower."""
    jobs = Neighbours()
    with jobs.job() as other:
        other.pid, processes.used_s[2] = 2, 100.0  # of before
        with jobs.job() as job:
            job.pid = 1
            hindrance = Hindrance(job, jobs)
            processes.used_s |= {1: 5.0, 2: 105.0}
            processes.waited_s[1] = 5.0
            assert hindrance.held_up_s(10) == 0


def test_where_the_kernel_does_not_tell_a_job_is_not_held_up(processes: Processes) -> None:
    jobs = Neighbours()
    with jobs.job() as job:
        job.pid = 1
        processes.used_s[1] = 0.1
        assert Hindrance(job, jobs).held_up_s(10) == 0


def test_once_a_job_starved_others_run_at_low_priority_for_a_while(clocks: Clocks) -> None:
    jobs = Neighbours()
    assert jobs.priority(Priority.IDLE) is Priority.IDLE
    with jobs.job() as job:
        assert jobs.starved(job)
        assert not jobs.starved(job)
        clocks.pass_by(1000)
        assert jobs.priority(Priority.IDLE) is Priority.LOW
        jobs.starved(job)
    clocks.pass_by(29)
    assert jobs.priority(Priority.IDLE) is Priority.LOW
    assert jobs.priority(Priority.NORMAL) is Priority.NORMAL
    clocks.pass_by(2)
    assert jobs.priority(Priority.IDLE) is Priority.IDLE


def test_a_machine_that_stays_busy_is_tried_less_and_less_often(clocks: Clocks) -> None:
    jobs = Neighbours()

    def busy_for_s() -> float:
        """Starve a job; return for how long no other is tried in the idle class."""
        with jobs.job() as job:
            assert jobs.starved(job)
        passed_s = 0.0
        while jobs.machine_is_busy:
            clocks.pass_by(1)
            passed_s += 1
        return passed_s

    assert [busy_for_s() for _ in range(7)] == [30, 60, 120, 240, 480, 600, 600]
    clocks.pass_by(601)
    assert busy_for_s() == 30
