"""One call waits for the shared tier for one time-out in all, however many requests it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.wait_budget import Allowance, SharedLookups, WaitBudget

HANG_S = 60.0


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def passes(self, seconds: float) -> str:
        self.now += seconds
        await asyncio.sleep(0)
        return "answer"


async def test_requests_one_after_the_other_share_one_time_out() -> None:
    clock = Clock()
    budget = WaitBudget(1.0, clock)
    assert await budget.spend_on(clock.passes(0.6)) == "answer"
    clock.now += 100  # The call's own work.
    assert await budget.spend_on(clock.passes(0.3)) == "answer"
    assert not budget.spent
    assert await budget.spend_on(clock.passes(0.2)) == "answer"
    assert budget.spent
    with pytest.raises(TierUnavailable):
        await budget.spend_on(clock.passes(0.0))


async def test_an_uncharged_request_costs_nothing_and_is_still_bounded() -> None:
    clock = Clock()
    budget = WaitBudget(0.1, clock)
    for _ in range(5):
        await budget.spend_on(clock.passes(0.09), charged=False)
    assert not budget.spent
    cancelled = asyncio.Event()
    with pytest.raises(TierUnavailable):
        await asyncio.wait_for(WaitBudget(0.05).spend_on(hang(cancelled), charged=False), 10)
    await asyncio.wait_for(cancelled.wait(), 10)


@pytest.mark.parametrize("charged", [True, False])
async def test_a_call_that_waited_in_vain_does_not_wait_again(charged: bool) -> None:
    budget = WaitBudget(0.05)
    cancelled = asyncio.Event()
    with pytest.raises(TierUnavailable):
        await asyncio.wait_for(budget.spend_on(hang(cancelled), charged=charged), 10)
    assert budget.spent

    async def in_vain(clock: Clock) -> None:
        await clock.passes(0.9)
        raise TierUnavailable("it timed out by itself")

    clock = Clock()
    budget = WaitBudget(1.0, clock)
    with pytest.raises(TierUnavailable):
        await budget.spend_on(in_vain(clock), charged=charged)
    await budget.spend_on(clock.passes(0.1))
    assert budget.spent


async def hang(cancelled: asyncio.Event) -> None:
    try:
        await asyncio.sleep(HANG_S)
    except asyncio.CancelledError:
        cancelled.set()
        raise


def looking_up(
    answer: str, *, allowed_s: float = 0.0, gate: asyncio.Event
) -> Callable[[Allowance], Awaitable[str]]:
    async def look_up(allowance: Allowance) -> str:
        allowance.add(allowed_s)
        await gate.wait()
        return answer

    return look_up


async def test_many_calls_share_one_look_up() -> None:
    lookups: SharedLookups[str, str] = SharedLookups()
    gate = asyncio.Event()
    waiting = [
        asyncio.create_task(lookups.get("k", looking_up(str(n), gate=gate), WaitBudget(HANG_S)))
        for n in range(5)
    ]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*waiting) == ["0"] * 5
    assert await lookups.get("k", looking_up("later", gate=gate), WaitBudget(HANG_S)) == "later"


async def test_a_call_whose_budget_ends_leaves_and_the_others_are_served() -> None:
    lookups: SharedLookups[str, str] = SharedLookups()
    gate = asyncio.Event()
    look_up = looking_up("found", gate=gate)
    patient = asyncio.create_task(lookups.get("k", look_up, WaitBudget(HANG_S)))
    hurried = WaitBudget(0.05)
    assert await asyncio.wait_for(lookups.get("k", look_up, hurried), 10) is None
    assert hurried.spent
    # Nor does it ask for anything else.
    assert await lookups.get("other", look_up, hurried) is None
    gate.set()
    assert await patient == "found"


async def test_a_call_that_joins_a_look_up_late_pays_from_its_beginning() -> None:
    async def look_up(_: Allowance) -> None:
        await gate.wait()

    lookups: SharedLookups[str, str] = SharedLookups()
    gate = asyncio.Event()
    waiting = asyncio.create_task(lookups.get("k", look_up, WaitBudget(HANG_S)))
    await asyncio.sleep(0.3)
    late = WaitBudget(0.4)
    joining = asyncio.create_task(lookups.get("k", look_up, late))
    await asyncio.sleep(0)
    gate.set()
    assert not any(await asyncio.gather(waiting, joining))
    late.charge(0.2)  # What it asks for next.
    assert late.spent


async def test_an_allowance_for_bytes_counts_for_every_call() -> None:
    lookups: SharedLookups[str, str] = SharedLookups()
    gate = asyncio.Event()
    look_up = looking_up("large", allowed_s=HANG_S, gate=gate)
    budget = WaitBudget(0.05)
    waiting = [
        asyncio.create_task(lookups.get("k", look_up, each)) for each in (WaitBudget(0.05), budget)
    ]
    await asyncio.sleep(0.2)
    gate.set()
    assert await asyncio.gather(*waiting) == ["large"] * 2
    assert not budget.spent


async def test_a_tier_that_does_not_answer_is_no_error_and_others_are() -> None:
    async def unavailable(_: Allowance) -> str:
        raise TierUnavailable("down")

    async def broken(_: Allowance) -> str:
        raise ZeroDivisionError

    lookups: SharedLookups[str, str] = SharedLookups()
    assert await lookups.get("k", unavailable, WaitBudget(1)) is None
    with pytest.raises(ZeroDivisionError):
        await lookups.get("k", broken, WaitBudget(1))
    assert await lookups.get("k", unavailable, WaitBudget(1)) is None
