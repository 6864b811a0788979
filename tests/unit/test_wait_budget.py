"""One call waits for the shared tier for one time-out in all, however many requests it makes."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd import flights
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.flights import Allowance, WaitBudget

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
    monkeypatch.setattr(flights, "time", clock)
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


async def test_a_failure_other_than_the_tier_s_is_raised_as_it_is() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    budget = WaitBudget(10.0)
    with pytest.raises(ZeroDivisionError):
        await budget.spend_on(broken())
    assert budget.left_s > 0
