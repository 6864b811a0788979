"""Claims over a real server: one daemon compiles, the others fetch, and no call hangs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.fleet.claim import LeaseFleet
from wasmkilnd.cache.fleet.lease import Lease
from wasmkilnd.cache.fleet.lease_store import LeaseStore
from wasmkilnd.cache.fleet.null_fleet import NullClaim
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX, RedisTier
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.engines.scheduling.dispatch import Dispatch
from wasmkilnd.engines.scheduling.ticket import Unless
from wasmkilnd.errors import (
    WasmkilnError,
    compile_queue_full,
    module_invalid,
    server_draining,
)
from wasmkilnd.model import EvictScope, Limits
from wasmkilnd.ports import Claim
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.wait_budget import WaitBudget
from wasmkilnd.waiters import Waiter, Waiters

from tests.contract.sealing import THEIRS, early_marks, sealer
from tests.contract.servers import RedisServer, binary_of, redis_server
from tests.contract.values import artifact
from tests.doubles.notes import Notes

ONE = sealer().seal(artifact(1))
LEASE_S = 0.5
# One, and what a busy machine may add; far less than anybody is waited for otherwise.
A_FEW_LEASES_S = 6 * LEASE_S


class Daemon:
    """What of a daemon takes part in an agreement."""

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
        """Have the only worker, or wait for it; return whether it is there."""
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
        """Be as a process that is gone: nobody renews, and nobody says goodbye."""
        self.fleet._leases._link = None  # type: ignore[assignment]
        self.fleet._leases._commands = None  # type: ignore[assignment]
        for task in self.fleet._background:
            task.cancel()
        self.fleet._background.clear()

    async def close(self) -> None:
        await self.fleet.close()
        await self.tier.close()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


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


async def test_one_of_many_compiles_and_the_others_wait_for_what_it_stored(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 5) as daemons:
        # Far longer than a lease: who lives renews it.
        compiling = [asyncio.create_task(daemon.compile(3 * LEASE_S)) for daemon in daemons]
        assert sorted(await asyncio.gather(*compiling)) == [False] * 4 + [True]
        assert sum(daemon.compiles for daemon in daemons) == 1
        turns = [turn for daemon in daemons for turn in daemon.outcomes.turns]
        assert sorted(turns) == ["made"] * 4 + ["taken"]


async def test_a_holder_that_stores_is_waited_for_no_longer_than_a_time_out(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two):
        one.writes.clear()  # As if it stood in a long queue to a slow server.
        assert await one.compile(2 * LEASE_S)
        assert await asyncio.wait_for(asyncio.create_task(two.compile()), 15)
        assert two.outcomes.turns == ["late"]
        one.writes.set()


async def test_a_lease_lasts_until_the_artifact_is_stored_and_no_longer(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        one.writes.clear()
        assert await one.compile()
        waiting = asyncio.create_task(two.compile())
        await asyncio.sleep(LEASE_S)
        assert not waiting.done()
        one.writes.set()
        assert not await waiting
        await one.fleet.close()
        assert not await raw.exists(one.tier.names.lease(ONE.key))


async def test_a_compile_that_fails_lets_all_the_others_go_at_once(valkey: RedisServer) -> None:
    async with fleet(valkey, 5) as (one, *others):
        waiting: list[asyncio.Task[bool]] = []

        async def fail() -> None:
            async with one.compiling():
                waiting.extend(asyncio.create_task(other.compile(LEASE_S)) for other in others)
                await asyncio.sleep(0.1)
                raise module_invalid("engine-1", "bad", None)

        with pytest.raises(WasmkilnError, match="bad"):
            await fail()
        began = asyncio.get_running_loop().time()
        assert all(await asyncio.gather(*waiting))
        # At the same time, not one after the other.
        assert asyncio.get_running_loop().time() - began < 3 * LEASE_S
        assert [other.outcomes.turns for other in others] == [["failed"]] * 4


@pytest.mark.parametrize(
    "how", [asyncio.CancelledError(), compile_queue_full("engine-1", 1, 1.0), server_draining()]
)
async def test_a_holder_that_gives_up_is_replaced_by_exactly_one(
    valkey: RedisServer, how: BaseException
) -> None:
    async with fleet(valkey, 4) as (one, *others):
        waiting: list[asyncio.Task[bool]] = []

        async def give_up() -> None:
            async with one.compiling():
                waiting.extend(asyncio.create_task(other.compile(0.1)) for other in others)
                await asyncio.sleep(0.1)
                raise how

        with pytest.raises(type(how)):
            await give_up()
        assert sorted(await asyncio.gather(*waiting)) == [False, False, True]
        turns = [turn for other in others for turn in other.outcomes.turns]
        assert sorted(turns) == ["made", "made", "taken"]


async def test_a_job_that_waits_for_a_worker_keeps_no_other_daemon_waiting(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (busy, idle):
        async with busy.worker(NullClaim().stored):
            queued = asyncio.create_task(busy.compile())
            await asyncio.sleep(0.1)
            assert await idle.compile()
            # Nor is it compiled here, nor has its caller to wait for a worker any more.
            assert not await asyncio.wait_for(queued, 10)
        assert (busy.compiles, busy.outcomes.turns) == (0, ["made"])
        assert idle.outcomes.turns == ["taken"]


async def test_a_job_gives_its_worker_back_while_another_daemon_compiles(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two):
        async with one.compiling():
            waiting = asyncio.create_task(two.compile())
            await asyncio.sleep(0.1)
            assert (two.dispatch.idle, two.dispatch.busy) == (1, 0)
            assert not waiting.done()
        assert not await waiting


async def test_a_stored_artifact_is_not_compiled_when_its_worker_is_free(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 1, max_wait_s=0.0) as [one]:
        async with one.fleet.claim(ONE.key, WaitBudget(1.0)) as claim:
            await one.tier.put(ONE)
            assert not await claim.take()
            assert await claim.wait_for_others()
        # And what is there, but of no use, is made all the same.
        async with one.fleet.claim(ONE.key, WaitBudget(1.0)) as claim:
            claim.ignore_others()
            assert await claim.take()


async def test_a_daemon_that_waited_too_long_compiles_only_what_is_not_stored(
    valkey: RedisServer,
) -> None:
    async with (
        fleet(valkey, 2, max_wait_s=0.2) as (one, two),
        one.compiling(),
        two.fleet.claim(ONE.key, WaitBudget(1.0)) as claim,
    ):
        assert not await claim.take()
        assert (
            not await claim.wait_for_others()
        )  # Its patience is over, and now it stands in a queue.
        await one.tier.put(ONE)
        assert not await claim.take()
        assert await claim.wait_for_others()


@pytest.mark.parametrize("cancelled", [True, False], ids=["left", "without an answer"])
async def test_a_lease_taken_by_an_unanswered_call_is_released(
    valkey: RedisServer, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        commands = one.fleet._leases._commands
        take, taken = commands.take, asyncio.Event()

        async def unanswered(*asked: Any) -> Any:
            await take(*asked)
            taken.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(commands, "take", unanswered)
        compiling = asyncio.create_task(one.compile())
        await taken.wait()
        assert await raw.persist(NAME)  # So that nothing else ends it.
        if cancelled:
            compiling.cancel()
        await asyncio.gather(compiling, return_exceptions=True)
        assert one.outcomes.turns == ([] if cancelled else ["alone"])
        await one.fleet.close()
        assert not await raw.exists(NAME)
        assert await two.compile()
        assert two.outcomes.turns == ["taken"]


async def test_a_dead_holder_is_replaced_by_exactly_one(valkey: RedisServer) -> None:
    async with fleet(valkey, 4) as (dead, *others):
        holding = asyncio.create_task(dead.compile(60))
        await asyncio.sleep(0.05)
        await dead.die()
        done = await asyncio.wait_for(
            asyncio.gather(*(other.compile(0.1) for other in others)), A_FEW_LEASES_S
        )
        assert sorted(done) == [False, False, True]
        holding.cancel()


async def test_a_holder_that_lost_its_lease_leaves_the_next_one_alone(valkey: RedisServer) -> None:
    async with fleet(valkey, 2) as (slow, quick), Redis.from_url(valkey.url) as raw:
        lease = slow.tier.names.lease(ONE.key)
        async with slow.compiling():
            await raw.delete(lease)  # As if it had been stopped for longer than the lease.
            async with quick.compiling():
                held = await raw.get(lease)
                assert held
                await asyncio.sleep(LEASE_S)
                renewed = await raw.get(lease)
                assert renewed
                assert renewed[:32] == held[:32]
                assert renewed != held
        await slow.fleet.close()
        assert slow.outcomes.turns == quick.outcomes.turns == ["taken"]


async def test_a_stored_artifact_is_not_compiled_again(valkey: RedisServer) -> None:
    async with fleet(valkey, 1) as [one], Redis.from_url(valkey.url) as raw:
        await one.tier.put(ONE)
        assert not await one.compile()
        assert not await raw.exists(one.tier.names.lease(ONE.key))


async def test_a_live_holder_is_waited_for_no_longer_than_max_wait_s(valkey: RedisServer) -> None:
    async with fleet(valkey, 2, max_wait_s=0.2) as (one, two):
        async with one.compiling():
            assert await two.compile()
        assert two.outcomes.turns == ["late"]


async def test_a_longer_max_wait_s_counts_for_calls_that_wait_already(valkey: RedisServer) -> None:
    async with fleet(valkey, 2, max_wait_s=0.5) as (one, two):
        async with one.compiling():
            waiting = asyncio.create_task(two.compile())
            await asyncio.sleep(0.1)
            two.max_wait_s = 60
            await asyncio.sleep(1.5)
        assert not await waiting
        assert two.outcomes.turns == ["made"]


NAME = KeyNames(DEFAULT_PREFIX).lease(ONE.key)
OTHERS = KeyNames(DEFAULT_PREFIX).lease(artifact(2).key)
HOUR_MS = 3_600_000
FORGERIES = {
    "of another shape": b"mine",
    "empty": b"",
    "signed by a stranger": Lease.new(HOUR_MS).written(NAME, sealer(THEIRS).stamp),
    "signed for another key": Lease.new(HOUR_MS).written(OTHERS, sealer().stamp),
    "signed, then changed": Lease.new(1000)
    .written(NAME, sealer().stamp)
    .replace(b".1000.", b".9000."),
}


@pytest.mark.parametrize("value", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_lease_delays_no_call(valkey: RedisServer, value: bytes) -> None:
    async with fleet(valkey, 3) as daemons, Redis.from_url(valkey.url) as raw:
        await raw.set(NAME, value)  # And it never expires.
        began = asyncio.get_running_loop().time()
        compiled = await asyncio.gather(*(daemon.compile(0.1) for daemon in daemons))
        assert asyncio.get_running_loop().time() - began < 10
        # One took it over, and the others believe that one again.
        assert sorted(compiled) == [False, False, True]
        turns = [turn for daemon in daemons for turn in daemon.outcomes.turns]
        assert sorted(turns) == ["made", "made", "seized"]


async def test_a_lease_key_of_another_type_delays_no_call(valkey: RedisServer) -> None:
    async with fleet(valkey, 1) as [one], Redis.from_url(valkey.url) as raw:
        await raw.lpush(NAME, "x")
        assert await one.compile()
        assert one.outcomes.turns == ["taken"]


async def test_a_copied_lease_that_nobody_renews_is_waited_for_no_longer_than_a_lease(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        async with one.compiling():
            copied = await raw.get(NAME)
            assert copied
        await one.fleet.close()
        await one.tier.evict(EvictScope())
        await raw.set(NAME, copied)
        assert await asyncio.wait_for(two.compile(), A_FEW_LEASES_S)
        assert two.outcomes.turns == ["seized"]


async def captured(raw: Redis, daemon: Daemon, renewals: int = 0) -> list[bytes]:
    """What an attacker may copy of a lease while ``daemon`` compiles, if it is renewed so often."""
    copies: list[bytes] = []
    async with daemon.compiling():
        while len(copies) < 1 + renewals:
            value = await raw.get(NAME)
            if isinstance(value, bytes) and value not in copies:
                copies.append(value)
            await asyncio.sleep(0.01)
    await daemon.fleet.close()
    await daemon.tier.evict(EvictScope())
    await raw.delete(NAME)
    return copies


async def put_back(raw: Redis, copies: list[bytes]) -> None:
    """Put back one lease after the other, for ever."""
    for copy in itertools.cycle(copies):
        await raw.set(NAME, copy)
        await asyncio.sleep(0.4 * LEASE_S)


async def test_copied_leases_that_are_written_back_in_turn_are_waited_for_once(
    valkey: RedisServer,
) -> None:
    """Each of them is new to the daemon, once; and none when it is too old."""
    async with (
        fleet(valkey, 3, max_wait_s=60) as (one, two, three),
        Redis.from_url(valkey.url) as raw,
    ):
        copies = [copy for daemon in (one, one, two, two) for copy in await captured(raw, daemon)]
        attacking = asyncio.create_task(put_back(raw, copies))
        try:
            for longest_s in (12 * LEASE_S, 2 * LEASE_S, 2 * LEASE_S):
                assert await asyncio.wait_for(three.compile(), longest_s)
                await three.fleet.close()
                await three.tier.evict(EvictScope())
        finally:
            attacking.cancel()


async def test_a_copy_of_this_daemon_s_own_lease_delays_no_call(valkey: RedisServer) -> None:
    async with fleet(valkey, 1, max_wait_s=60) as [one], Redis.from_url(valkey.url) as raw:
        copies = await captured(raw, one, renewals=2)
        attacking = asyncio.create_task(put_back(raw, copies))
        try:
            assert await asyncio.wait_for(one.compile(), LEASE_S)
        finally:
            attacking.cancel()


@pytest.mark.parametrize("what", ["lease", "artifact"])
async def test_a_writer_that_makes_leases_come_and_go_cannot_delay_a_call_for_ever(
    valkey: RedisServer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is there when it is to be taken, and gone when it is looked at."""
    async with fleet(valkey, 2, max_wait_s=60) as (one, two), Redis.from_url(valkey.url) as raw:
        copies = await captured(raw, one, renewals=3)
        names, genuine = two.tier.names, two.fleet._leases.take
        lookups = itertools.count()

        async def take(*arguments: Any) -> Any:
            copy = copies[min(next(lookups), len(copies) - 1)]
            name, value = (NAME, copy) if what == "lease" else (names.artifact(ONE.key), b"x")
            await raw.set(name, value)
            try:
                return await genuine(*arguments)
            finally:
                await raw.delete(name)

        monkeypatch.setattr(two.fleet._leases, "take", take)
        assert await asyncio.wait_for(two.compile(), A_FEW_LEASES_S)
        assert next(lookups) < 10


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_a_server_every_daemon_compiles(tmp_path: Path, how: signal.Signals) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        one, two = Daemon(running.url), Daemon(running.url)

        async def call() -> tuple[bool, bool]:
            budget = WaitBudget(1.0)
            return await two.compile(budget=budget), budget.spent

        async with one.compiling():
            waiting = asyncio.create_task(call())
            await asyncio.sleep(0.1)
            running.process.send_signal(how)
            # Waiting for one was free; what it asks next does not wait for silence once more.
            assert await asyncio.wait_for(waiting, 10) == (True, how is signal.SIGSTOP)
            assert two.outcomes.turns == ["alone"]
            assert await two.compile()
        await one.close()
        await two.close()
