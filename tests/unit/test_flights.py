"""One flight per key, work in slices, and the time that a call waits for the shared tier."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
from wasmkilnd.errors import Reason, TierUnavailable, WasmkilnError
from wasmkilnd.waits import budgets
from wasmkilnd.waits.budgets import Allowance, WaitBudget
from wasmkilnd.waits.flights import SLICE_S, Flights, Waiter, Waiters, in_slices


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


A = Waiter("a")


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


# Long work runs in slices, and work that fails or is cancelled leaves its turn to the next


def busy(steps: int) -> Iterator[int]:
    """Work for a quarter of a slice at each step."""
    for step in range(steps):
        until = time.perf_counter() + SLICE_S / 4
        while time.perf_counter() < until:
            pass
        yield step


async def test_work_that_fails_lets_the_next_go_on() -> None:
    def failing() -> Iterator[None]:
        yield
        yield
        raise ValueError("as planned")

    other = asyncio.create_task(in_slices(busy(12)))
    with pytest.raises(ValueError, match="as planned"):
        await in_slices(failing())
    cancelled = asyncio.create_task(in_slices(busy(400)))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await other == list(range(12))


# One call waits for the shared tier for one time-out in all, however many requests it makes


HANG_S = 60.0


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def passes(self, seconds: float) -> str:
        self.now += seconds
        await asyncio.sleep(0)
        return "answer"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    return clock


async def test_requests_one_after_the_other_share_one_time_out(clock: Clock) -> None:
    budget = WaitBudget(1.0)
    assert await budget.spend_on(clock.passes(0.6)) == "answer"
    clock.now += 100  # The call's own work.
    assert await budget.spend_on(clock.passes(0.3)) == "answer"
    assert budget.left_s > 0
    assert await budget.spend_on(clock.passes(0.2)) == "answer"
    assert budget.left_s <= 0
    with pytest.raises(TierUnavailable):
        await budget.spend_on(clock.passes(0.0))


async def test_an_allowance_counts_for_every_call_that_waits() -> None:
    gate, allowance = asyncio.Event(), Allowance()
    budgets = [WaitBudget(0.1) for _ in range(2)]
    waiting = [asyncio.create_task(each.spend_on(gate.wait(), allowance)) for each in budgets]
    await asyncio.sleep(0)
    allowance.seconds += HANG_S
    await asyncio.sleep(0.3)
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 2
    assert not any(budget.left_s <= 0 for budget in budgets)


async def test_what_a_daemon_s_own_work_takes_is_granted() -> None:
    allowance = Allowance()

    async def queue() -> str:
        with allowance.free():
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.01)
        return "answer"

    budget = WaitBudget(0.2)
    assert await budget.spend_on(queue(), allowance) == "answer"
    assert budget.left_s > 0
    assert allowance.seconds >= 0.3
    granted_s = allowance.seconds
    await asyncio.sleep(0.01)
    assert allowance.seconds == granted_s  # It has ended.


async def test_no_call_waits_for_ever_once_its_time_counts_again() -> None:
    allowance = Allowance()

    async def queue_and_hang() -> None:
        with allowance.free():
            await asyncio.sleep(0.3)
        await asyncio.sleep(HANG_S)

    with pytest.raises(TierUnavailable):
        await asyncio.wait_for(WaitBudget(0.1).spend_on(queue_and_hang(), allowance), 10)
