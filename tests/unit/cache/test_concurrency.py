"""Asking several at once."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd.cache.redis.concurrency import first_success


async def after(
    wait_s: float, answer: str = "", failure: str = "", ended: list[str] | None = None
) -> str:
    """Return or fail after a while; tell in ``ended`` if it was stopped before."""
    try:
        await asyncio.sleep(wait_s)
    except asyncio.CancelledError:
        if ended is not None:
            ended.append(answer)
        raise
    if failure:
        raise ValueError(failure)
    return answer


async def test_the_first_that_succeeds_answers_and_the_rest_is_stopped() -> None:
    ended: list[str] = []
    asked = [after(60, "hangs", ended=ended), after(0, failure="no"), after(0.01, "yes")]
    assert await first_success(asked) == "yes"
    assert ended == ["hangs"]


async def test_if_all_fail_the_last_failure_is_raised() -> None:
    with pytest.raises(ValueError, match="late"):
        await first_success([after(0.01, failure="late"), after(0, failure="early")])


async def test_whoever_waits_may_leave() -> None:
    ended: list[str] = []
    waiting = asyncio.create_task(first_success([after(60, "hangs", ended=ended)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == ["hangs"]
