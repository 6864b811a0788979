"""Enforce one job's time limit, and rescue a job that gets no CPU.

A job that starves in the idle class leaves the class. Where the daemon may not change the class of
a process, as the user of a service may not, the job starts again on another worker, at low
priority: it has lost little, since it got next to no CPU. Killing it frees its worker only when it
has had the CPU to end, which takes seconds, so its worker is replaced.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType

import structlog

from wasmkilnd.engines.workers.contention import Hindrance, Neighbours, RunningJob
from wasmkilnd.engines.workers.cpu_time import leave_idle_class, wants_cpu
from wasmkilnd.model import Priority

log = structlog.get_logger("wasmkilnd.engines")

# How often to look whether a job in the idle class gets a CPU.
_LOOK_S = 0.5
# A job in the idle class starves if it gets less than the first of these shares of a CPU, and all
# jobs together get less than the second. Where other processes leave more, jobs share it.
_NEXT_TO_NOTHING = 0.1
_LITTLE = 0.2
# However busy the machine is, a job is killed after this many times its limit.
MOST_TIMES_ITS_LIMIT = 4
_LEAST_EXTENSION = 0.01


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    used_s: float
    used_by_all_s: float
    wants_cpu: bool


class JobClock:
    """The time of one job."""

    def __init__(
        self, job: RunningJob, jobs: Neighbours, priority: Priority, limit_s: float
    ) -> None:
        """Time ``job``, whose process has just started with ``priority``, among all ``jobs``."""
        self._job, self._jobs = job, jobs
        self._hindrance = Hindrance(job, jobs)
        self._limit_s = limit_s
        self.in_idle_class = priority is Priority.IDLE
        self.must_start_again = False
        """Whether the job starves, and cannot leave the idle class."""
        self._timeout = asyncio.timeout(MOST_TIMES_ITS_LIMIT * limit_s)

    async def __aenter__(self) -> None:
        """Start the time. The block raises TimeoutError when it is over, or the job starves."""
        # Not a generator: that would keep the frames of a job whose time is over, and its module.
        await self._timeout.__aenter__()
        self._watching = asyncio.create_task(self._watch(self._timeout))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        watching, timeout = self._watching, self._timeout
        # A cancelled task keeps its frames, which keep this object: so it must not keep the task.
        del self._watching, self._timeout
        watching.cancel()
        await timeout.__aexit__(kind, error, traceback)

    async def _watch(self, timeout: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        began_s = now()
        over_s = began_s + self._limit_s
        # A process that has just started wants a CPU.
        before = _Look(began_s, 0.0, self._jobs.used_s(), wants_cpu=True)
        while True:
            left_s = over_s - now()
            await asyncio.sleep(min(_LOOK_S, left_s) if self.in_idle_class else left_s)
            elapsed_s = now() - began_s
            if now() >= over_s:
                left_s = self._limit_s - (elapsed_s - self._hindrance.held_up_s(elapsed_s))
                if left_s < _LEAST_EXTENSION * self._limit_s:
                    timeout.reschedule(now())
                    return
                over_s = now() + left_s
            if self.in_idle_class and now() - before.at_s >= _LOOK_S:
                look = self._look(now())
                if self._starves(before, look):
                    self._relieve()
                    if self.must_start_again:
                        timeout.reschedule(now())
                        return
                before = look

    def _look(self, at_s: float) -> _Look:
        used_by_all_s = self._jobs.used_s()
        return _Look(at_s, self._job.used_s, used_by_all_s, wants_cpu(self._job.pid))

    def _starves(self, before: _Look, after: _Look) -> bool:
        took_s = after.at_s - before.at_s
        return (
            before.wants_cpu
            and after.wants_cpu
            and after.used_s - before.used_s < _NEXT_TO_NOTHING * took_s
            and (
                self._jobs.machine_is_busy
                or after.used_by_all_s - before.used_by_all_s < _LITTLE * took_s
            )
        )

    def _relieve(self) -> None:
        if self._jobs.starved(self._job):
            log.info("other processes want all CPUs: jobs run at low priority for a while")
        self.in_idle_class = not leave_idle_class(self._job.pid)
        self.must_start_again = self.in_idle_class
