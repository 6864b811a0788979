"""The bound on bytes a second."""

from __future__ import annotations

from wasmkilnd.cache.pace import Pace


class Clock:
    """Time that passes in sleeps only."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


async def test_bytes_take_their_time_together() -> None:
    clock = Clock()
    pace = Pace(1000, sleep=clock.sleep, clock=clock)
    for _ in range(10):
        await pace.spent(500)
    assert clock.now_s == 105.0


async def test_time_that_went_by_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(1000, sleep=clock.sleep, clock=clock)
    clock.now_s += 60
    await pace.spent(2000)
    assert clock.now_s == 162.0


async def test_without_a_bound_nobody_waits() -> None:
    clock = Clock()
    await Pace(0, sleep=clock.sleep, clock=clock).spent(10**12)
    assert clock.now_s == 100.0
