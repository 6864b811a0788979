"""The faults of the soak: it kills workers, jobs, Redis and whole daemons."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from tests.e2e.processes import jobs_of, send, workers_of
from tests.soak.fleet import WORKERS, Fleet, Life, Member
from tests.soak.modules import ENGINES

WORKER_KILLED = "worker killed"
JOB_KILLED = "job killed"
REDIS_KILLED = "Redis killed, started again"
REDIS_STOPPED = "Redis stopped, continued"
DAEMON_KILLED = "daemon killed, started again"
DAEMON_ENDED = "daemon ended with SIGTERM, started again"
KINDS = (WORKER_KILLED, JOB_KILLED, REDIS_KILLED, REDIS_STOPPED, DAEMON_KILLED, DAEMON_ENDED)

_POLL_S = 0.05
# Within that a worker that is there has begun with the job that waits for it.
_FORK_S = 0.5
# On average, in a long run; in a short one all of it comes sooner.
_WORKER_S, _JOB_S, _REDIS_S, _DAEMON_S = 3.0, 8.0, 12.0, 25.0
_LEAST_PER_RUN = 4


@dataclass(frozen=True)
class Blow:
    """One fault."""

    kind: str
    at_s: float
    life: Life | None = None
    """The daemon that it concerned, unless it was Redis."""


class Chaos:
    """Causes faults until the soak is over; then starts everything again that it ended."""

    def __init__(self, fleet: Fleet, seed: int, seconds: float, over: asyncio.Event) -> None:
        self.blows: list[Blow] = []
        self._fleet = fleet
        self._seed = seed
        self._seconds = seconds
        self._over = over

    @property
    def missing(self) -> list[str]:
        """The kinds of faults that have not happened yet."""
        return sorted(set(KINDS) - {blow.kind for blow in self.blows})

    async def rage(self) -> None:
        """Cause all kinds of faults, each in a task of its own."""
        steady, *others = self._fleet.members
        tracks: list[Callable[[random.Random], Coroutine[None, None, None]]] = [
            self._kill_workers,
            self._kill_jobs,
            self._trouble_redis,
            lambda dice: self._end_daemons(dice, others),
            lambda _: self._end_early(steady),
        ]
        dice = [random.Random(f"{self._seed} chaos {number}") for number in range(len(tracks))]
        await asyncio.gather(*(track(die) for track, die in zip(tracks, dice, strict=True)))

    async def _kill_workers(self, dice: random.Random) -> None:
        while await self._rest(dice, _WORKER_S):
            life = await self._kill_one(dice, WORKER_KILLED, workers_of)
            if life:
                await self._made_up_for(life)

    async def _kill_jobs(self, dice: random.Random) -> None:
        while await self._rest(dice, _JOB_S):
            while not self._over.is_set() and not await self._kill_one(dice, JOB_KILLED, jobs_of):
                await self._sleep(_POLL_S)

    async def _kill_one(
        self, dice: random.Random, kind: str, choose: Callable[[int], list[int]]
    ) -> Life | None:
        life = self._fleet.any_life(dice)
        found = await asyncio.to_thread(choose, life.daemon.pid) if life.lives else []
        if not found:
            return None
        self.blows.append(Blow(kind, time.monotonic(), life))
        send(signal.SIGKILL, dice.choice(found))
        return life

    async def _made_up_for(self, life: Life) -> None:
        """Wait until the worker was replaced, and its job done by another.

        That a job is done again is promised; that it is when it loses its next worker too
        is not, and on a busy machine a job takes so long that it often would.
        """
        pid = life.daemon.pid
        await self._while(life, lambda: len(workers_of(pid)) < WORKERS * len(ENGINES))
        await self._sleep(_FORK_S)
        at_work = set(await asyncio.to_thread(jobs_of, pid))
        await self._while(life, lambda: bool(at_work.intersection(jobs_of(pid))))

    async def _while(self, life: Life, check: Callable[[], bool]) -> None:
        while life.lives and not self._over.is_set() and await asyncio.to_thread(check):
            await self._sleep(_POLL_S)

    async def _trouble_redis(self, dice: random.Random) -> None:
        server = self._fleet.server
        stop = dice.random() < 0.5
        while await self._rest(dice, _REDIS_S):
            self.blows.append(Blow(REDIS_STOPPED if stop else REDIS_KILLED, time.monotonic()))
            if stop:
                server.signal(signal.SIGSTOP)
                await self._sleep(dice.uniform(0.3, 4))
                server.signal(signal.SIGCONT)
            else:
                server.signal(signal.SIGKILL)
                await self._sleep(dice.uniform(0.3, 2))
                await asyncio.to_thread(server.start)
            stop = not stop

    async def _end_daemons(self, dice: random.Random, members: list[Member]) -> None:
        how = dice.sample((DAEMON_KILLED, DAEMON_ENDED), 2)
        while await self._rest(dice, _DAEMON_S):
            # Calls to a fleet that is gone altogether would show nothing.
            while not all(member.life.lives for member in self._fleet.members):
                await self._sleep(_POLL_S)
                if self._over.is_set():
                    return
            member = dice.choice(members)
            self.blows.append(Blow(how[0], time.monotonic(), member.life))
            await (member.kill() if how[0] == DAEMON_KILLED else member.stop())
            await member.start()
            how.reverse()

    async def _end_early(self, member: Member) -> None:
        """Kill a daemon once and then never again, so that a leak has time to show."""
        await self._sleep(self._seconds / 10)
        if not self._over.is_set():
            self.blows.append(Blow(DAEMON_KILLED, time.monotonic(), member.life))
            await member.kill()
            await member.start()

    async def _rest(self, dice: random.Random, mean_s: float) -> bool:
        """Wait; return whether the soak goes on."""
        mean_s = min(mean_s, self._seconds / _LEAST_PER_RUN)
        await self._sleep(mean_s * dice.uniform(0.5, 1.5))
        return not self._over.is_set()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return
