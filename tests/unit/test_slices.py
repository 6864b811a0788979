"""Long work runs in slices between which other tasks run, however much work there is."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator

import pytest
from wasmkilnd.flights import SLICE_S, in_slices


def busy(slices: int, ran: list[str], name: str = "") -> Iterator[str]:
    """Work for so many slices, and note each step."""
    for _ in range(slices * 4):
        ran.append(name)
        until = time.perf_counter() + SLICE_S / 4
        while time.perf_counter() < until:
            pass
        yield name


async def test_work_of_one_step_is_done_at_once() -> None:
    work = in_slices(["one"])
    with pytest.raises(StopIteration) as end:  # It never gave way.
        work.send(None)
    assert end.value.value == ["one"]


async def test_other_tasks_run_between_slices() -> None:
    ran: list[str] = []
    work = asyncio.create_task(in_slices(busy(20, ran)))
    turns, steps = 0, []
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
        steps.append(len(ran))
    # A slice has at most so many steps, and one that began when its time was nearly over.
    assert max(after - before for before, after in itertools.pairwise(steps)) <= 5
    assert turns >= 16
    assert await work == [""] * 80


async def test_much_work_holds_the_loop_no_longer_than_one_piece_of_it() -> None:
    ran: list[str] = []
    pieces = [asyncio.create_task(in_slices(busy(4, ran, str(n)))) for n in range(10)]
    await asyncio.sleep(0)  # Each takes its first step, and one of them goes on.
    done = len(ran)
    assert 10 <= done <= 15
    while not all(piece.done() for piece in pieces):
        await asyncio.sleep(0)
        assert len(ran) - done <= 5
        done = len(ran)
    # They took turns: no two steps of the last lie further apart than a slice of each other.
    last = [at for at, name in enumerate(ran) if name == ran[-1]]
    assert max(after - before for before, after in itertools.pairwise(last)) <= 10 * 5
    assert [await piece for piece in pieces] == [[str(n)] * 16 for n in range(10)]


async def test_work_that_fails_lets_the_next_go_on() -> None:
    def failing() -> Iterator[None]:
        yield
        yield
        raise ValueError("as planned")

    ran: list[str] = []
    other = asyncio.create_task(in_slices(busy(3, ran)))
    with pytest.raises(ValueError, match="as planned"):
        await in_slices(failing())
    cancelled = asyncio.create_task(in_slices(busy(100, [])))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await other
