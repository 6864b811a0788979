"""Artifacts that answers keep in memory: for which caller they count, and what is ended."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Artifact
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.flow.send_budget import LEAST_PACE, SendBudget

from tests.contract.values import artifact
from tests.unit.rpc.limits import limits


class Rig:
    def __init__(self, limit: int = 1000, timeout: float = 60) -> None:
        self.memory: set[Artifact] = set()
        self.limits = Reloadable(limits(send_pinned_bytes=limit, caller_timeout_s=timeout))
        self.budget = SendBudget(self.limits, self.memory.__contains__)
        self.waiting: list[asyncio.Task[None]] = []

    async def takes(self, caller: str, one: Artifact) -> bool:
        """Return whether there is room at once; if not, a task waits for it."""
        task = asyncio.create_task(self.budget.enter(caller, one))
        await asyncio.sleep(0)
        if task.done():
            await task
            return True
        self.waiting.append(task)
        return False

    async def close(self) -> None:
        for task in self.waiting:
            task.cancel()
        await asyncio.gather(*self.waiting, return_exceptions=True)
        assert not list(self.budget.waiting)


def artifacts(*sizes: int) -> list[Artifact]:
    return [artifact(tag, size) for tag, size in enumerate(sizes)]


async def test_an_artifact_counts_once_for_who_has_sent_it_longest() -> None:
    rig = Rig()
    one, other = artifacts(400, 400)
    for caller in ("a", "a", "b"):
        assert await rig.takes(caller, one)
    assert rig.budget.total_bytes == 400
    assert rig.budget.payers() == {one: "a"}
    rig.budget.leave("a", one)
    assert rig.budget.payers() == {one: "a"}
    rig.budget.leave("a", one)
    assert rig.budget.payers() == {one: "b"}
    rig.budget.leave("b", one)
    assert rig.budget.total_bytes == 0
    assert await rig.takes("a", other)


async def test_nobody_gets_more_than_is_left_free_so_the_next_finds_room() -> None:
    rig = Rig()
    big, more, middle, small = artifacts(400, 200, 250, 100)
    assert await rig.takes("a", big)
    assert not await rig.takes("a", more)
    assert await rig.takes("b", middle)
    assert await rig.takes("c", small)
    await rig.close()


async def test_one_alone_always_fits() -> None:
    rig = Rig()
    (large,) = artifacts(5000)
    assert await rig.takes("a", large)


async def test_what_memory_holds_needs_no_room() -> None:
    rig = Rig()
    big, held, more, other = artifacts(900, 500, 500, 500)
    rig.memory.update((held, more))
    assert await rig.takes("a", big)
    assert await rig.takes("b", held)
    assert await rig.takes("b", more)
    assert not await rig.takes("c", other)
    rig.memory.clear()  # Now it is held for answers alone: that much more, and no more than that.
    rig.memory.add(other)
    assert not await rig.takes("d", other)
    await rig.close()


async def test_who_waits_goes_on_when_there_is_room() -> None:
    rig = Rig()
    one, other, small = artifacts(600, 500, 100)
    assert await rig.takes("a", one)
    assert not await rig.takes("b", other)
    assert await rig.takes("c", small)  # It is in nobody's way.
    rig.budget.leave("a", one)
    rig.budget.wake()
    await asyncio.sleep(0)
    assert not rig.waiting[0].done()
    rig.limits.current = limits(send_pinned_bytes=2000)
    rig.budget.wake()
    await rig.waiting[0]
    assert rig.budget.total_bytes == 600


async def test_as_much_as_may_be_sent_may_wait_and_no_more() -> None:
    rig = Rig()
    first, *others = artifacts(900, *[200] * 5)
    assert await rig.takes("a", first)
    for caller, one in zip("bbbc", others[:4], strict=True):
        assert not await rig.takes(caller, one)
    for caller in "bc":
        with pytest.raises(WasmkilnError) as failure:
            await rig.takes(caller, others[4])
        assert failure.value.metadata["limit"] == "send"
    assert sum(waiting.size_bytes for waiting in rig.budget.waiting) == 800
    await rig.close()


async def test_who_waits_too_long_is_refused() -> None:
    rig = Rig(timeout=0.05)
    one, other = artifacts(900, 900)
    assert await rig.takes("a", one)
    with pytest.raises(WasmkilnError) as failure:
        await rig.budget.enter("b", other)
    assert failure.value.metadata["limit"] == "send"
    assert not list(rig.budget.waiting)


async def test_the_slowest_of_the_heaviest_goes_and_no_more_than_has_to() -> None:
    rig = Rig()
    fast, slow, light, wanted, less = artifacts(200, 150, 150, 300, 260)
    for caller, one in (("a", fast), ("a", slow), ("b", light)):
        assert await rig.takes(caller, one)
    paces = {fast: 1e9, slow: 1.0, light: 0.0}
    assert rig.budget.too_slow(paces) == []  # Nobody waits.
    assert not await rig.takes("c", wanted)
    assert rig.budget.too_slow(paces) == [slow]
    assert not await rig.takes("d", less)
    assert rig.budget.too_slow(paces) == [slow, light]
    assert rig.budget.too_slow({fast: 1e9, slow: 1e9, light: 1e9}) == []
    await rig.close()


async def test_who_reads_fast_enough_is_left_alone_however_much_it_holds() -> None:
    rig = Rig()
    big, wanted = artifacts(900, 100)
    assert await rig.takes("a", big)
    assert not await rig.takes("b", wanted)
    assert rig.budget.too_slow({big: 1.1 * LEAST_PACE}) == []
    assert rig.budget.too_slow({big: 0.9 * LEAST_PACE}) == [big]
    await rig.close()


async def test_who_would_hold_as_much_pushes_out_only_who_is_slow() -> None:
    rig = Rig()
    big, wanted = artifacts(600, 600)
    assert await rig.takes("a", big)
    assert not await rig.takes("b", wanted)
    assert rig.budget.too_slow({big: 1.1 * LEAST_PACE}) == []
    assert rig.budget.too_slow({big: 0.9 * LEAST_PACE}) == [big]
    await rig.close()


async def test_a_caller_that_holds_more_ends_no_answer_of_one_that_holds_less() -> None:
    rig = Rig()
    big, small, wanted = artifacts(400, 200, 300)
    assert await rig.takes("a", big)
    assert await rig.takes("b", small)
    assert not await rig.takes("a", wanted)
    assert rig.budget.too_slow({big: LEAST_PACE, small: 0.0}) == []
    await rig.close()


async def test_nobody_pushes_itself_out_but_for_what_it_takes_nothing_of() -> None:
    rig = Rig()
    one, other = artifacts(500, 500)
    assert await rig.takes("a", one)
    assert not await rig.takes("a", other)
    assert rig.budget.too_slow({one: 10.0}) == []
    assert rig.budget.too_slow({one: 0.0}) == [one]
    await rig.close()
