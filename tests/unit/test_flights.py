"""One flight per key, whatever its callers do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.flights import Flights, Waiter, Waiters


class Work:
    """Ends once it is released."""

    def __init__(self, result: object = "made") -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Event()
        self._result = result

    async def __call__(self) -> object:
        self.started.set()
        await self.release.wait()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


async def run(
    flights: Flights, key: str, work: Callable[[], Awaitable[object]]
) -> tuple[object, bool]:
    """Wait for a flight that is kept; return its result and whether it was joined."""

    async def kept(waiters: Waiters) -> object:
        waiters.kept = True
        return await work()

    ticket = flights.join(key, Waiter(), kept)
    return await ticket.wait(), ticket.joined


async def test_a_failure_reaches_every_caller_and_frees_the_key() -> None:
    flights = Flights()
    broken = Work(ValueError("no"))
    calls = [asyncio.create_task(run(flights, "k", broken)) for _ in range(3)]
    await broken.started.wait()
    broken.release.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError] * 3
    healthy = Work()
    healthy.release.set()
    assert await run(flights, "k", healthy) == ("made", False)


async def test_a_flight_that_is_dropped_was_not_done() -> None:
    flights = Flights()
    work, heard = Work(), list[object]()
    ticket = flights.join("k", Waiter(), lambda _: work())
    ticket.on_end(heard.append)
    call = asyncio.create_task(ticket.wait())
    await work.started.wait()
    call.cancel()
    await flights.settle(5)
    [failure] = heard
    assert isinstance(failure, WasmkilnError)
    assert failure.reason is Reason.SERVER_DRAINING


A, B = Waiter("a"), Waiter("b")


async def test_a_flight_that_all_callers_leave_is_dropped_and_its_key_is_free_at_once() -> None:
    flights = Flights()
    ended = []

    async def work(waiters: Waiters) -> object:
        try:
            return await asyncio.Future()
        finally:
            await asyncio.sleep(0)  # It takes a moment to clean up.
            ended.append("cleaned up")

    calls = [asyncio.create_task(flights.join("k", A, work).wait()) for _ in range(2)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.sleep(0)
    assert len(flights) == 1
    calls[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(flights) == 0
    healthy = Work()
    healthy.release.set()
    assert await run(flights, "k", healthy) == ("made", False)
    await flights.settle(5)
    assert ended == ["cleaned up"]


async def test_a_flight_knows_who_waits_for_it() -> None:
    flights = Flights()
    work, known = Work(), list[Waiters]()

    async def watched(waiters: Waiters) -> object:
        known.append(waiters)
        return await work()

    callers = (Waiter("w", background=True), A, A, B)
    calls = [asyncio.create_task(flights.join("k", each, watched).wait()) for each in callers]
    await work.started.wait()
    [waiters] = known
    assert waiters.waiting == {callers[0]: 1, A: 2, B: 1}
    calls[1].cancel()
    calls[3].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiters.waiting == {callers[0]: 1, A: 1}
    work.release.set()
    assert await calls[0] == await calls[2] == "made"
    assert not waiters.waiting
    assert "k" not in flights
