"""Long work runs in slices, and work that fails or is cancelled leaves its turn to the next.

That other tasks run between slices is in tests/e2e/test_dear_requests.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from wasmkilnd.flights import SLICE_S, in_slices


def busy(steps: int) -> Iterator[int]:
    """Work for a quarter of a slice at each step."""
    for step in range(steps):
        until = time.perf_counter() + SLICE_S / 4
        while time.perf_counter() < until:
            pass
        yield step


async def test_work_of_one_step_is_done_at_once() -> None:
    work = in_slices(["one"])
    with pytest.raises(StopIteration) as end:  # It never gave way.
        work.send(None)
    assert end.value.value == ["one"]


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
