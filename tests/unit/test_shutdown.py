"""Deadlines that can only come nearer, and work that is cut short by an event."""

from __future__ import annotations

import asyncio

import pytest
from wasmkilnd.app import until


async def test_work_is_done_until_the_event() -> None:
    event = asyncio.Event()
    cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    assert await until(event, asyncio.sleep(0))
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert not await until(event, hang())
    assert cancelled.is_set()


async def test_what_work_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await until(asyncio.Event(), fail())


async def test_cancelling_the_wait_cancels_the_work() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(until(asyncio.Event(), hang()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
