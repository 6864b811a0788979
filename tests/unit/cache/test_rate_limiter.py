"""The bound on bytes a second."""

from __future__ import annotations

from wasmkilnd.cache.redis.value_reader import RateLimiter

from tests.doubles.clock import Clock


async def test_bytes_take_their_time_together() -> None:
    clock = Clock(100.0)
    pace = RateLimiter(1000, sleep=clock.sleep, clock=clock)
    for _ in range(10):
        await pace.spent(500)
    assert clock.now_s == 105.0


async def test_time_that_went_by_is_not_made_up_for() -> None:
    clock = Clock(100.0)
    pace = RateLimiter(1000, sleep=clock.sleep, clock=clock)
    clock.now_s += 60
    await pace.spent(2000)
    assert clock.now_s == 162.0


async def test_without_a_bound_nobody_waits() -> None:
    clock = Clock(100.0)
    await RateLimiter(0, sleep=clock.sleep, clock=clock).spent(10**12)
    assert clock.now_s == 100.0
