"""Who pays: the caller that starts a piece of work, for all that follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from wasmkilnd import errors
from wasmkilnd.access.quotas.accounts import Accounts
from wasmkilnd.account import Account, Bill
from wasmkilnd.compile import Request, Terms
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Flights, Waiter, Waiters
from wasmkilnd.model import ALL_ROLES, Identity, Origin, QuotaLimits
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.traffic import Call, Traffic

from tests.doubles.clock import Clock
from tests.doubles.context import Context
from tests.unit.engines.limits import LIMITS
from tests.unit.engines.test_pool import Rig as Workers
from tests.unit.engines.test_pool import settled
from tests.unit.rpc.limits import limits
from tests.unit.rpc.test_traffic import Caller
from tests.unit.services import CORE, Rig


class Arrived(Context):
    """A call whose request is there."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    async def read(self) -> bytes:
        return self._raw


CI = Identity("token:ci", ALL_ROLES, quota="q")


def accounts(**most: float) -> Accounts:
    """Return accounts whose identities may use so much."""
    limits = replace(QuotaLimits("q"), **most)  # type: ignore[arg-type]
    return Accounts(lambda _: limits, Reloadable(LIMITS), kept_s=600.0, clock=Clock())


def used(of: Accounts) -> dict[str, float]:
    """Return what is used of each kind."""
    return {row.kind: row.used for row in of.readings()}


class Noted(Bill):
    """A bill that has room for no job, or for all, and notes those that wait."""

    def __init__(self, *, room: bool = True) -> None:
        self.room = room
        self.waits = 0

    def no_place_in_queue(
        self, engine_id: str, size_bytes: int, wait_s: Callable[[], float]
    ) -> WasmkilnError | None:
        return None if self.room else errors.quota_exceeded("queue_share", "no", wait_s())

    @contextmanager
    def waiting(self, engine_id: str, size_bytes: int) -> Iterator[None]:
        self.waits += 1
        try:
            yield
        finally:
            self.waits -= 1


async def test_the_one_that_starts_a_flight_pays_for_it() -> None:
    flights = Flights()
    first, second = Noted(), Noted()

    async def work(waiters: Waiters) -> Bill:
        await asyncio.sleep(0)
        return waiters.bill

    tickets = [flights.join("k", Waiter(), work, bill) for bill in (first, second)]
    assert await asyncio.gather(*(ticket.wait() for ticket in tickets)) == [first, first]


async def test_a_job_waits_only_where_its_bill_has_a_place() -> None:
    workers = Workers()
    running = workers.ask(waiters=Waiters.of(Waiter("a"), Noted(room=False)))
    await settled()
    assert workers.pool.busy == 1, "a free worker needs no place in the queue"
    with pytest.raises(WasmkilnError) as failure:
        await workers.ask(waiters=Waiters.of(Waiter("a"), Noted(room=False)))
    assert failure.value.reason is Reason.QUOTA_EXCEEDED
    assert failure.value.retry_after_s
    bill = Noted()
    waiting = workers.ask(waiters=Waiters.of(Waiter("a"), bill))
    leaving = workers.ask(waiters=Waiters.of(Waiter("a"), bill))
    await settled()
    assert bill.waits == 2
    leaving.cancel()
    await settled()
    assert bill.waits == 1
    await workers.end()
    assert bill.waits == 0
    await workers.end()
    await asyncio.gather(running, waiting)


async def test_a_request_counts_for_its_account_until_it_is_released() -> None:
    of = accounts(bytes_in_flight=10)
    traffic = Traffic(Reloadable(limits()), 1000, lambda _: False)

    def call(raw: bytes) -> Call:
        return Call(Arrived(raw), account=of.of(CI))

    first = call(b"12345678")
    await traffic.read(first, 1000)
    traffic.hold_more(first, 4)
    assert used(of) == {"bytes_in_flight": 12}
    with pytest.raises(WasmkilnError) as failure:
        await traffic.read(call(b"123"), 1000)
    assert failure.value.metadata == {"quota": "bytes_in_flight"}
    first.release_request()
    first.release_request()
    assert used(of).get("bytes_in_flight", 0) == 0
    assert traffic.receive_bytes == 0


async def test_a_request_that_arrives_slowly_counts_in_full_for_its_account() -> None:
    of = accounts(bytes_in_flight=1000)
    traffic = Traffic(Reloadable(limits()), 1000, lambda _: False)
    callers = [Caller(), Caller()]

    async def read(caller: Caller) -> Call:
        call = Call(caller, account=of.of(CI), task=asyncio.current_task())
        try:
            await traffic.read(call, 1000)
        except asyncio.CancelledError:
            if call.refusal is None:
                raise
            raise call.refusal from None
        return call

    calls = [asyncio.create_task(read(caller)) for caller in callers]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    [refused] = done
    failure = refused.exception()
    assert isinstance(failure, WasmkilnError)
    assert failure.reason is Reason.QUOTA_EXCEEDED
    assert used(of) == {"bytes_in_flight": 1000}
    for caller in callers:
        caller.message = b"x"
        caller.arrived.set()
    [call] = set(calls) - done
    arrived = await call
    assert used(of) == {"bytes_in_flight": 1}
    arrived.release_request()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def asked(number: int, account: Account, **wishes: object) -> Request:
    """Return a request for a module of its own."""
    wasm = CORE + bytes([0, 2, 1, number])
    return Request(wasm=wasm, terms=Terms(Waiter("ci"), account=account), **wishes)  # type: ignore[arg-type]


async def test_a_compile_is_charged_to_who_started_it(rig: Rig) -> None:
    ours, theirs = accounts(bytes_kept=10**6), accounts(bytes_kept=10**6, compiles_per_minute=1)
    rig.engines.release.clear()
    first = asyncio.create_task(rig.compiler.compile(asked(1, ours.of(CI))))
    await rig.engines.started.wait()
    second = asyncio.create_task(rig.compiler.compile(asked(1, theirs.of(CI))))
    await settled()
    rig.engines.release.set()
    artifact = (await first).artifact
    assert (await second).origin is Origin.JOINED_FLIGHT
    assert used(ours) == {"bytes_kept": artifact.size_bytes + len(asked(1, ours.of(CI)).wasm)}
    assert used(theirs) == {}


async def test_a_refused_compile_holds_nothing_and_a_hit_is_served(rig: Rig) -> None:
    of = accounts(compiles_per_minute=1, bytes_in_flight=10**6)
    account = of.of(CI)
    bill = account.start(1, compiles=True, arrived=True)
    bill.job_began()
    bill.close()
    rig.engines.compiles = 0
    with pytest.raises(WasmkilnError) as failure:
        await rig.compiler.compile(asked(2, account))
    assert failure.value.metadata == {"quota": "compiles_per_minute"}
    assert rig.engines.compiles == 0
    assert used(of) == {"compiles_per_minute": 1}
    await rig.compiler.compile(asked(2, accounts().of(CI)))
    assert (await rig.compiler.compile(asked(2, account))).origin is Origin.MEMORY
    # The first refusal left no bytes behind in admission either.
    assert rig.engines.compiles == 1


async def test_a_flight_without_a_job_gives_its_compile_back(rig: Rig) -> None:
    of = accounts(compiles_per_minute=2)
    rig.engines.failure = errors.server_draining()
    with pytest.raises(WasmkilnError):
        await rig.compiler.compile(asked(3, of.of(CI)))
    await settled()
    assert used(of) == {}  # The double of the engines runs no job.


async def test_a_load_is_charged_what_it_stores(rig: Rig) -> None:
    of = accounts(bytes_kept=10**6, bytes_in_flight=10**6)
    request = Request(wasm=CORE, terms=Terms(Waiter("ci"), account=of.of(CI)))
    await rig.compiler.load(request)
    assert used(of) == {"bytes_kept": len(CORE)}
    await rig.compiler.load(Request(wasm=CORE, terms=Terms(Waiter("ci"), account=of.of(CI))))
    assert used(of) == {"bytes_kept": len(CORE)}, "it was loaded already"
