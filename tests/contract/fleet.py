"""Daemons on one Redis, as far as they agree on who compiles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from wasmkilnd.cache.fleet.claim import LeaseFleet
from wasmkilnd.cache.fleet.lease_store import LeaseStore
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX, RedisTier
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.engines.scheduling.dispatch import Dispatch
from wasmkilnd.engines.scheduling.ticket import Unless
from wasmkilnd.model import EvictScope, Limits
from wasmkilnd.ports import Claim
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.wait_budget import WaitBudget
from wasmkilnd.waiters import Waiter, Waiters

from tests.contract.sealing import early_marks, sealer
from tests.contract.values import artifact
from tests.doubles.notes import Notes
from tests.servers.redis_server import RedisServer

ONE = sealer().seal(artifact(1))
NAME = KeyNames(DEFAULT_PREFIX).lease(ONE.key)
LEASE_S = 1.0
# One lease, and what a busy machine may add: half of max_wait_s.
A_FEW_LEASES_S = 10 * LEASE_S


class Daemon:
    """The parts of a daemon that take part in who compiles."""

    def __init__(self, url: str, max_wait_s: float = 20) -> None:
        self.outcomes = Notes()
        self.max_wait_s = max_wait_s
        self.tier = RedisTier(
            connect(url, timeout_s=1), sealer(), self.outcomes, timeout_s=1, marks=early_marks()
        )
        self.writes = asyncio.Event()
        self.writes.set()
        leases = LeaseStore(
            self.tier.link, self.tier.names, sealer(), lambda key: self._stored(), LEASE_S
        )
        self.fleet = LeaseFleet(leases, self.outcomes, max_wait_s=lambda: self.max_wait_s)
        limits = Reloadable(Limits(1, 1, 1, 1, 1, 100, 10**9))
        self.dispatch = Dispatch[str]("engine-1", limits, self.outcomes)
        self.dispatch.offer("worker")
        self.compiles = 0

    async def _stored(self) -> None:
        await self.writes.wait()
        await self.tier.put(ONE)

    async def compile(self, seconds: float = 0.0, budget: WaitBudget | None = None) -> bool:
        """Compile unless another daemon does; return whether it was done here."""
        async with self.fleet.claim(ONE.key, budget or WaitBudget(1.0)) as claim:
            while not await self._compiled_here(claim, seconds):
                if await claim.wait_for_others():
                    return False
            return True

    async def _compiled_here(self, claim: Claim, seconds: float) -> bool:
        async with self.worker(claim.stored) as there:
            if not (there and await claim.take()):
                return False
            self.compiles += 1
            await asyncio.sleep(seconds)
            return True

    @contextlib.asynccontextmanager
    async def worker(self, unless: Unless) -> AsyncIterator[bool]:
        """Wait for the only worker; return whether this daemon got it."""
        ticket = await self.dispatch.take_unless(Waiters.of(Waiter()), "compile", 1, unless)
        try:
            yield ticket is not None
        finally:
            if ticket:
                self.dispatch.done(ticket)
                self.dispatch.offer(ticket.worker)

    @contextlib.asynccontextmanager
    async def compiling(self) -> AsyncIterator[None]:
        """Compile for as long as the context lasts."""
        async with self.fleet.claim(ONE.key, WaitBudget(1.0)) as claim:
            assert await claim.take()
            yield

    async def die(self) -> None:
        """Stop as a killed process does: renew and release nothing."""
        self.fleet._leases._link = None  # type: ignore[assignment]
        self.fleet._leases._commands = None  # type: ignore[assignment]
        for task in self.fleet._background:
            task.cancel()
        self.fleet._background.clear()

    async def close(self) -> None:
        await self.fleet.close()
        await self.tier.close()


@contextlib.asynccontextmanager
async def fleet(
    server: RedisServer, size: int, max_wait_s: float = 20
) -> AsyncIterator[list[Daemon]]:
    daemons = [Daemon(server.url, max_wait_s) for _ in range(size)]
    await daemons[0].tier.evict(EvictScope())
    async with Redis.from_url(server.url) as raw:
        await raw.delete(daemons[0].tier.names.lease(ONE.key))
    try:
        yield daemons
    finally:
        for daemon in daemons:
            await daemon.close()
