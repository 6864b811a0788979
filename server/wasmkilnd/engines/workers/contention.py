"""Whether jobs get the CPUs that they need, and who keeps them from it.

A job in the idle class gets next to nothing while other processes want all CPUs: with two of them
on each CPU, a five-hundredth. Then the machine counts as busy for a while, in which jobs run at
low priority. Whether a job shared the CPUs decides also what a timeout is blamed on, and how long
a job may take.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wasmkilnd.engines.workers.cpu_time import cpu_used_s, cpu_wait_s
from wasmkilnd.model import Priority

# A daemon that used more of a CPU than this has taken it from its jobs for other calls.
_BUSY = 0.1
# How long jobs run at low priority once one starved in the idle class. It doubles while the machine
# is found busy again soon after: a job that starves in vain costs time, and perhaps its worker.
_FIRST_BUSY_S = 30.0
_MOST_BUSY_S = 600.0


@dataclass(eq=False, slots=True)
class RunningJob:
    """One job, while it runs and after."""

    alone: bool
    """Whether no other job has run beside it so far, nor the daemon been busy with calls."""
    pid: int = 0
    """Its process; 0 before that has started."""
    used_s: float = 0.0
    """The CPU time that it used, when it was last seen."""
    starved: bool = False
    """Whether it got next to no CPU in the idle class."""


class Neighbours:
    """The jobs of all engines that run now. For one event loop."""

    def __init__(self) -> None:
        self._running: set[RunningJob] = set()
        self._used_by_ended_s = 0.0
        self._busy_for_s = _FIRST_BUSY_S
        self._busy_until_s = -math.inf

    @contextmanager
    def job(self) -> Iterator[RunningJob]:
        """Count a job for as long as the context lasts."""
        for other in self._running:
            other.alone = False
        job = RunningJob(alone=not self._running)
        self._running.add(job)
        began_s, used_s = time.monotonic(), time.process_time()
        try:
            yield job
        finally:
            self._running.discard(job)
            self._used_by_ended_s += job.used_s
            lived_s = time.monotonic() - began_s
            if time.process_time() - used_s > _BUSY * lived_s:
                job.alone = False

    def priority(self, wanted: Priority) -> Priority:
        """Return the priority for a job that starts now and is to have ``wanted``."""
        return Priority.LOW if wanted is Priority.IDLE and self.machine_is_busy else wanted

    @property
    def machine_is_busy(self) -> bool:
        """Whether a job starved in the idle class, and still runs or did so not long ago."""
        return time.monotonic() < self._busy_until_s or any(job.starved for job in self._running)

    def starved(self, job: RunningJob) -> bool:
        """Take note that a job starves; return whether this was not known of the machine."""
        new = not self.machine_is_busy
        job.starved = True
        now_s = time.monotonic()
        if new and now_s < self._busy_until_s + self._busy_for_s:
            self._busy_for_s = min(2 * self._busy_for_s, _MOST_BUSY_S)
        elif new:
            self._busy_for_s = _FIRST_BUSY_S
        self._busy_until_s = now_s + self._busy_for_s
        return new

    def used_s(self) -> float:
        """Return the CPU time of all jobs until now, including those that have ended."""
        for job in self._running:
            if job.pid:
                job.used_s = cpu_used_s(job.pid) or job.used_s
        return self._used_by_ended_s + sum(job.used_s for job in self._running)


class Hindrance:
    """How much of a job's time passes while processes other than jobs have the CPUs."""

    def __init__(self, job: RunningJob, jobs: Neighbours) -> None:
        """Observe ``job``, which starts now, among all ``jobs``."""
        self._job, self._jobs = job, jobs
        self._used_by_all_s = jobs.used_s() - job.used_s

    def held_up_s(self, elapsed_s: float) -> float:
        """Return for how long of ``elapsed_s`` the job was kept from the CPUs by others.

        While a thread waits for its CPU, another one has it: what other jobs used of the CPUs is
        the part of its wait that is their doing, and does not count. Nor does anything where the
        kernel does not tell how long a process waits.
        """
        used_by_all_s = self._jobs.used_s()
        waited_s = cpu_wait_s(self._job.pid) or 0.0
        by_jobs_s = used_by_all_s - self._used_by_all_s - self._job.used_s
        by_others_s = max(0.0, waited_s - by_jobs_s)
        wanted_s = self._job.used_s + waited_s
        return elapsed_s * by_others_s / wanted_s if by_others_s else 0.0
