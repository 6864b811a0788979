"""Daemons on one real Redis: one compiles for all, no call hangs, and strikes are shared."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.errors import (
    TierUnavailable,
    WasmkilnError,
    module_invalid,
)
from wasmkilnd.model import CacheKey, Strike
from wasmkilnd.redis.fleet import Claim, Fleet
from wasmkilnd.redis.records import Strikes
from wasmkilnd.waits.budgets import WaitBudget

from tests.contract.redis_stores import open_link
from tests.contract.sealing import sealer
from tests.doubles.notes import Notes
from tests.servers.redis_server import RedisServer

PREFIX = "wasm:"
KEY = CacheKey("a" * 64, "f" * 64, "wasmtime-1.0")
ARTIFACT = f"wasm:3:compiled:{{{KEY.module_sha256}}}:{KEY.engine_id}:{KEY.fingerprint}"
LEASE = f"wasm:3:lease:{{{KEY.module_sha256}}}:{KEY.fingerprint}"
# Long enough for a busy machine to renew it in time.
LEASE_S = 2.0


@pytest.fixture
async def raw(valkey: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey.url) as client:
        await client.flushall()
        yield client


async def nothing() -> None:
    """Compile in no time."""


class Daemon:
    """The parts of a daemon with one worker that take part in who compiles."""

    def __init__(self, link: Any, lease_s: float = LEASE_S, max_wait_s: float = 100) -> None:
        self.notes = Notes()
        self.max_wait_s = max_wait_s
        self.link = link
        self.fleet = Fleet(
            self.link,
            PREFIX,
            self.notes,
            self._store,
            lease_s=lease_s,
            max_wait_s=lambda: self.max_wait_s,
        )
        self.may_store = asyncio.Event()
        self.may_store.set()
        self.stores = True
        self.worker = asyncio.Lock()
        self.compiles = 0

    @property
    def turns(self) -> list[str]:
        return self.notes.turns

    def claim(self) -> contextlib.AbstractAsyncContextManager[Claim]:
        return self.fleet.claim(KEY, WaitBudget(10.0))

    async def compile(
        self, work: Callable[[], Awaitable[Any]] = nothing, budget: WaitBudget | None = None
    ) -> bool:
        """Compile unless another daemon does; return whether it was done here."""
        async with self.fleet.claim(KEY, budget or WaitBudget(10.0)) as claim:
            while not await self._compiled_here(claim, work):
                if await claim.wait_for_others():
                    return False
            return True

    async def _compiled_here(self, claim: Claim, work: Callable[[], Awaitable[Any]]) -> bool:
        stored = asyncio.ensure_future(claim.stored())
        free = asyncio.ensure_future(self.worker.acquire())
        await asyncio.wait((stored, free), return_when=asyncio.FIRST_COMPLETED)
        stored.cancel()
        if not free.done():
            free.cancel()
            return False
        try:
            if not await claim.take():
                return False
            self.compiles += 1
            await work()
            return True
        finally:
            self.worker.release()

    @contextlib.asynccontextmanager
    async def compiling(self) -> AsyncIterator[None]:
        """Compile for as long as the context lasts."""
        async with self.claim() as claim:
            assert await claim.take()
            yield

    async def _store(self, key: CacheKey) -> None:
        await self.may_store.wait()
        if self.stores:
            await self.link.run(("SET", ARTIFACT, b"x"))

    async def close(self) -> None:
        await self.fleet.close()
        await self.link.close()


@contextlib.asynccontextmanager
async def fleet(server: RedisServer, size: int, **settings: float) -> AsyncIterator[list[Daemon]]:
    daemons = [Daemon(open_link(server.url), **settings) for _ in range(size)]
    try:
        yield daemons
    finally:
        for daemon in daemons:
            await daemon.close()


def beginning(daemons: list[Daemon]) -> list[asyncio.Task[bool]]:
    """Have all daemons compile at once."""
    return [asyncio.create_task(daemon.compile()) for daemon in daemons]


async def until_waiting() -> None:
    """Let those that were started just now look at the lease some times."""
    await asyncio.sleep(0.3)


def a_lease() -> bytes:
    """A lease as any writer to Redis can make one."""
    return secrets.token_hex(16).encode()


async def test_a_lease_lasts_until_the_artifact_is_stored_and_no_longer(
    valkey: RedisServer, raw: Redis
) -> None:
    async with fleet(valkey, 2, lease_s=60) as (one, two):
        one.may_store.clear()
        assert await one.compile()
        waiting = asyncio.create_task(two.compile())
        await until_waiting()
        assert not waiting.done()
        one.may_store.set()
        assert not await waiting
        await one.fleet.close()
        assert not await raw.exists(LEASE)


async def test_a_holder_that_cannot_store_is_waited_for_no_longer_than_a_lease(
    valkey: RedisServer, raw: Redis
) -> None:
    async with fleet(valkey, 3) as (one, *others):
        one.may_store.clear()  # As if it stood in a long queue to a slow server.
        assert await one.compile()
        assert sorted(await asyncio.gather(*beginning(others))) == [False, True]
        assert sorted(turn for other in others for turn in other.turns) == ["made", "taken"]
        one.may_store.set()


@pytest.mark.parametrize("stores", [False, True], ids=["not stored", "failed"])
async def test_a_compile_that_is_in_vain_lets_all_the_others_go_at_once(
    valkey: RedisServer, raw: Redis, stores: bool
) -> None:
    """Its artifact may be larger than what the server takes."""
    async with fleet(valkey, 4, lease_s=60) as (one, *others):
        one.stores = stores
        together = asyncio.Barrier(len(others))  # Nobody passes it who compiles after another.
        waiting: list[asyncio.Task[bool]] = []
        with contextlib.suppress(WasmkilnError):
            async with one.compiling():
                waiting += (asyncio.create_task(each.compile(together.wait)) for each in others)
                await until_waiting()
                if stores:
                    raise module_invalid("engine-1", "bad", None)
        assert all(await asyncio.gather(*waiting))
        assert [other.turns for other in others] == [["failed"]] * 3


async def test_a_refusal_is_told_before_the_claim_ends(valkey: RedisServer, raw: Redis) -> None:
    async with fleet(valkey, 2, lease_s=60) as (one, two), one.claim() as claim:
        assert await claim.take()
        waiting = asyncio.create_task(two.compile())
        await until_waiting()
        claim.failed()
        assert await waiting
        assert two.turns == ["failed"]


async def test_a_holder_that_lost_its_lease_leaves_the_next_one_alone(
    valkey: RedisServer, raw: Redis
) -> None:
    async with fleet(valkey, 2) as (slow, quick), quick.claim() as claim:
        async with slow.compiling():
            await raw.delete(LEASE)  # As if it had been stopped for longer than the lease.
            assert await claim.take()
            held = await raw.get(LEASE)
            await asyncio.sleep(LEASE_S)
            assert await raw.get(LEASE) == held
        await slow.fleet.close()
        assert await raw.get(LEASE) == held
        assert slow.turns == quick.turns == ["taken"]


async def test_a_holder_renews_its_lease_across_a_short_outage(
    valkey: RedisServer, raw: Redis
) -> None:
    async with fleet(valkey, 2) as (one, two):
        run, failed = one.link.run, asyncio.Event()

        async def fail_once(*commands: object, timeout_s: float | None = None) -> Any:
            one.link.run = run
            failed.set()
            raise TierUnavailable("just now")

        async with one.compiling():
            one.link.run = fail_once
            waiting = asyncio.create_task(two.compile())
            await failed.wait()
            await asyncio.sleep(LEASE_S)
            assert not waiting.done()
        assert not await waiting


async def test_all_queued_jobs_together_look_50_times_a_second_at_most() -> None:
    looked: list[object] = []

    class Counted:
        async def run(self, *commands: object, timeout_s: float | None = None) -> list[Any]:
            looked.append(commands)
            return [0, b"held", 60]

    daemon = Fleet(
        Counted(),  # type: ignore[arg-type]
        PREFIX,
        Notes(),
        lambda key: nothing(),
        lease_s=1,
        max_wait_s=lambda: 1,
    )

    async def queue() -> None:
        async with daemon.claim(KEY, WaitBudget(10.0)) as claim:
            await claim.stored()

    clock = asyncio.get_running_loop().time
    began_s = clock()
    queued = [asyncio.create_task(queue()) for _ in range(100)]
    while len(looked) < 50:
        await asyncio.sleep(0.05)
        assert len(looked) <= 50 * (clock() - began_s)
    for task in queued:
        task.cancel()
    await asyncio.gather(*queued, return_exceptions=True)


async def test_a_stored_artifact_is_not_compiled_but_if_it_is_of_no_use(
    valkey: RedisServer, raw: Redis
) -> None:
    async with fleet(valkey, 1) as [one]:
        await raw.set(ARTIFACT, b"x")
        assert not await one.compile()
        assert not await raw.exists(LEASE)
        async with one.claim() as claim:
            assert not await claim.take()
            assert await claim.wait_for_others()
            claim.ignore_others()
            assert await claim.take()
        await raw.delete(ARTIFACT)
        await raw.set(ARTIFACT.replace(KEY.engine_id, "wasmtime-2.0"), b"x")
        assert await one.compile()


@pytest.mark.parametrize("cancelled", [True, False], ids=["left", "without an answer"])
async def test_a_lease_taken_by_an_unanswered_call_is_released(
    valkey: RedisServer, raw: Redis, cancelled: bool
) -> None:
    async with fleet(valkey, 2, lease_s=1000) as (one, two):
        run, taken = one.link.run, asyncio.Event()

        async def unanswered(*commands: object, timeout_s: float | None = None) -> Any:
            await run(*commands)
            one.link.run = run
            taken.set()
            await asyncio.sleep(60)

        one.link.run = unanswered
        compiling = asyncio.create_task(one.compile(budget=WaitBudget(2.0)))
        await taken.wait()
        assert await raw.exists(LEASE)
        if cancelled:
            compiling.cancel()
        await asyncio.gather(compiling, return_exceptions=True)
        assert one.turns == ([] if cancelled else ["alone"])
        await one.fleet.close()
        assert not await raw.exists(LEASE)
        assert await two.compile()
        assert two.turns == ["taken"]


async def test_a_live_holder_is_waited_for_no_longer_than_max_wait_s_as_of_now(
    valkey: RedisServer, raw: Redis
) -> None:
    async with fleet(valkey, 3, lease_s=60, max_wait_s=0.8) as (one, two, three):
        async with one.compiling():
            waiting = asyncio.create_task(three.compile())
            await until_waiting()
            three.max_wait_s = 100
            assert await two.compile()
            await asyncio.sleep(0.3)
        assert not await waiting
        assert (two.turns, three.turns) == (["late"], ["made"])


async def test_all_waits_of_a_call_count_together(valkey: RedisServer, raw: Redis) -> None:
    async with fleet(valkey, 1) as [one], one.claim() as claim:
        await raw.set(LEASE, a_lease(), ex=60)
        assert not await claim.take()
        waiting = asyncio.create_task(claim.wait_for_others())
        await until_waiting()
        await raw.delete(LEASE)
        assert not await waiting
        one.max_wait_s = 0.2  # Less than it has waited by now.
        await raw.set(LEASE, a_lease(), ex=60)
        assert not await claim.take()
        run, looks = one.link.run, 0

        async def counted(*commands: object, timeout_s: float | None = None) -> Any:
            nonlocal looks
            looks += 1
            return await run(*commands)

        one.link.run = counted
        assert not await claim.wait_for_others()
        assert looks == 1
        # It compiles, but only what was not stored while it stood in a queue.
        await raw.set(ARTIFACT, b"x")
        assert not await claim.take()
        await raw.delete(ARTIFACT)
        assert await claim.take()
        assert one.turns == ["late"]


async def test_looks_at_a_lease_of_others_cost_a_call_no_budget() -> None:
    looks = 0

    class Slow:
        async def run(self, *commands: object, timeout_s: float | None = None) -> list[Any]:
            nonlocal looks
            looks += 1
            await asyncio.sleep(0.05)
            if looks == 5:
                raise TierUnavailable("it timed out by itself")
            return [looks == 4, a_lease(), 60]

    budget = WaitBudget(10.0)
    async with Daemon(Slow()).fleet.claim(KEY, budget) as claim:
        assert await claim.wait_for_others()
        assert (looks, budget.left_s) == (4, 10.0)
        # But who waited in vain must not wait for a second time-out.
        assert not await claim.wait_for_others()
        assert budget.left_s < 10.0


# Leases that no daemon writes. Who can write to Redis can do so, and more.


async def test_a_lease_that_no_daemon_writes_delays_no_call(
    valkey: RedisServer, raw: Redis
) -> None:
    """Who can write to Redis can write one, and more."""
    forged = [b"mine", b"", b"a" * 33, b"a" * 1_000_000, b"a" * 32, b"failed"]  # All for ever.
    async with asyncio.timeout(20):
        for value in forged:
            async with fleet(valkey, 2, lease_s=60) as daemons:
                await raw.flushall()
                await raw.set(LEASE, value)
                assert await asyncio.gather(*beginning(daemons)) == [True] * 2
                assert [daemon.turns for daemon in daemons] == [["late"]] * 2
        async with fleet(valkey, 1, lease_s=60) as [one]:
            await raw.flushall()
            await raw.lpush(LEASE, "x")
            assert await one.compile()
            await one.fleet.close()
            assert one.turns == ["alone"]


@pytest.mark.parametrize("name", [LEASE, ARTIFACT], ids=["lease", "artifact"])
async def test_a_writer_that_makes_keys_come_and_go_cannot_delay_a_call_for_ever(
    valkey: RedisServer, raw: Redis, name: str
) -> None:
    """The key is there when the lease is to be taken, and gone when it is looked at."""
    async with fleet(valkey, 1) as [one], one.claim() as claim:
        for _ in range(4):
            await raw.set(name, a_lease(), ex=60)
            assert not await claim.take()
            await raw.delete(name)
            assert not await claim.wait_for_others()
        await raw.set(name, a_lease(), ex=60)
        assert await claim.take()
        assert one.turns == ["late"]


STRIKE = Strike(KEY, "e-1", "COMPILE_TIMEOUT", "it took too long", 3, 600.0)
STRIKE_NAME = f"wasm:3:strike:{{{KEY.module_sha256}}}:{KEY.fingerprint}"


def strikes_on(link: Any, prefix: str = PREFIX) -> Strikes:
    return Strikes(link, prefix, sealer())


@pytest.fixture
async def link(valkey: RedisServer) -> AsyncIterator[Any]:
    opened = open_link(valkey.url)
    yield opened
    await opened.close()


@pytest.fixture
def strikes(link: Any, raw: Redis) -> Strikes:
    return strikes_on(link)


def about(one: Strike | None, other: Strike) -> bool:
    """Whether two strikes are equal, but for the time that a test takes."""
    if one is None:
        return False
    close = other.left_s - 60 < one.left_s <= other.left_s
    return close and replace(one, left_s=other.left_s) == other


async def test_a_strike_that_is_written_back_ends_when_its_time_is_over(
    strikes: Strikes, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await strikes.put(STRIKE, 1000, WaitBudget())
    copy = await raw.get(STRIKE_NAME)
    assert copy
    await strikes.remove(KEY.module_sha256)
    assert await strikes.get(KEY, WaitBudget()) is None
    later_s, genuine = 0, time.time
    monkeypatch.setattr("time.time", lambda: genuine() + later_s)
    # For as long as it likes; and nor does a clock that is behind make it last longer.
    await raw.set(STRIKE_NAME, copy)
    for later_s, left_s in ((0, 600), (300, 300), (900, 0), (-500, 600)):  # noqa: B007
        assert about(await strikes.get(KEY, WaitBudget()), replace(STRIKE, left_s=left_s))
    later_s = 1100
    assert await strikes.get(KEY, WaitBudget()) is None


async def test_a_release_leaves_other_modules_and_namespaces_alone(
    strikes: Strikes, link: Any
) -> None:
    elsewhere = strikes_on(link, "wasm:ns:one:")
    for each in (strikes, elsewhere):
        await each.put(STRIKE, 1000, WaitBudget())
    assert await strikes.remove("c" * 64) == []
    assert await strikes.remove("") == [KEY]
    [left] = await elsewhere.all()
    assert about(left, STRIKE)
