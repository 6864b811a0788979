"""The faults of the soak: of workers, jobs and daemons, and of what these stand on."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial

from tests.e2e.processes import jobs_of, send, workers_of
from tests.soak.fleet import LEASE_S, WORKERS, Fleet, Life, Member
from tests.soak.modules import ENGINES
from tests.soak.site import FAULTS

WORKER_KILLED = "worker killed"
JOB_KILLED = "job killed"
DAEMON_KILLED = "daemon killed, started again"
DAEMON_ENDED = "daemon ended with SIGTERM, started again"
DAEMON_STOPPED = "daemon stopped, continued"
_ENDS = (DAEMON_KILLED, DAEMON_ENDED, DAEMON_STOPPED)
KINDS = (
    *(WORKER_KILLED, JOB_KILLED, *_ENDS),
    *(f"{part} {kind.name}" for part, kinds in FAULTS.items() for kind in kinds),
)

_POLL_S = 0.05
# Within that a worker that is there has begun with the job that waits for it.
_FORK_S = 0.5
# On average, in a long run; in a short one all of it comes sooner.
_WORKER_S, _JOB_S, _TROUBLE_S, _DAEMON_S = 3.0, 8.0, 9.0, 15.0
# Longer than a lease.
_STOPPED_S = 1.5 * LEASE_S
_LEAST_PER_RUN = 6


@dataclass(frozen=True)
class Blow:
    """One fault."""

    kind: str
    at_s: float
    life: Life | None = None
    """The daemon that it concerned, if it was one."""


@dataclass
class Chaos:
    """Causes faults until the soak is over; then starts everything again that it ended."""

    fleet: Fleet
    seed: int
    seconds: float
    over: asyncio.Event
    blows: list[Blow] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The kinds of faults that have not happened yet."""
        return sorted(set(KINDS) - {blow.kind for blow in self.blows})

    async def rage(self) -> None:
        """Cause all kinds of faults, each in a task of its own."""
        steady, *others = self.fleet.members
        tracks: list[Callable[[random.Random], Coroutine[None, None, None]]] = [
            self._kill_workers,
            self._kill_jobs,
            *(partial(self._trouble, part) for part in FAULTS),
            lambda dice: self._end_daemons(dice, others),
            lambda _: self._end_early(steady),
        ]
        dice = [random.Random(f"{self.seed} chaos {number}") for number in range(len(tracks))]
        await asyncio.gather(*(track(die) for track, die in zip(tracks, dice, strict=True)))

    async def _kill_workers(self, dice: random.Random) -> None:
        while await self._rest(dice, _WORKER_S):
            life = await self._kill_one(dice, WORKER_KILLED, workers_of)
            if life:
                await self._made_up_for(life)

    async def _kill_jobs(self, dice: random.Random) -> None:
        while await self._rest(dice, _JOB_S):
            while not self.over.is_set() and not await self._kill_one(dice, JOB_KILLED, jobs_of):
                await self._sleep(_POLL_S)

    async def _kill_one(
        self, dice: random.Random, kind: str, choose: Callable[[int], list[int]]
    ) -> Life | None:
        life = self.fleet.any_life(dice)
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
        while life.lives and not self.over.is_set() and await asyncio.to_thread(check):
            await self._sleep(_POLL_S)

    async def _trouble(self, part: str, dice: random.Random) -> None:
        kinds = FAULTS[part]
        while True:
            for kind in dice.sample(kinds, len(kinds)):
                if not await self._rest(dice, _TROUBLE_S):
                    return
                self.blows.append(Blow(f"{part} {kind.name}", time.monotonic()))
                sick = kind.sick(getattr(self.fleet.ground, part))
                await asyncio.to_thread(sick.__enter__)
                await self._last(dice, kind.lasts_s)
                await asyncio.to_thread(sick.__exit__, None, None, None)

    async def _end_daemons(self, dice: random.Random, members: list[Member]) -> None:
        while True:
            for how in dice.sample(_ENDS, len(_ENDS)):
                if not await self._rest(dice, _DAEMON_S):
                    return
                # Calls to a fleet that is gone altogether would show nothing.
                while not all(member.life.lives for member in self.fleet.members):
                    await self._sleep(_POLL_S)
                    if self.over.is_set():
                        return
                member = dice.choice(members)
                life = member.life
                self.blows.append(Blow(how, time.monotonic(), life))
                if how == DAEMON_STOPPED:
                    life.daemon.process.send_signal(signal.SIGSTOP)
                    await self._last(dice, _STOPPED_S)
                    life.daemon.process.send_signal(signal.SIGCONT)
                else:
                    await (member.kill() if how == DAEMON_KILLED else member.stop())
                    await member.start()

    async def _end_early(self, member: Member) -> None:
        """Kill a daemon once and then never again, so that a leak has time to show."""
        await self._sleep(self.seconds / 10)
        if not self.over.is_set():
            self.blows.append(Blow(DAEMON_KILLED, time.monotonic(), member.life))
            await member.kill()
            await member.start()

    async def _rest(self, dice: random.Random, mean_s: float) -> bool:
        """Wait; return whether the soak goes on."""
        mean_s = min(mean_s, self.seconds / _LEAST_PER_RUN)
        await self._sleep(mean_s * dice.uniform(0.5, 1.5))
        return not self.over.is_set()

    async def _last(self, dice: random.Random, most_s: float) -> None:
        await self._sleep(min(dice.uniform(0.3, most_s), self.seconds / _LEAST_PER_RUN))

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return
