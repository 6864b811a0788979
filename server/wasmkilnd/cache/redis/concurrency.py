"""Two ways to run many coroutines: some at a time, or all until one succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from wasmkilnd.errors import TierUnavailable

T = TypeVar("T")


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], limit: int) -> None:
    """Run ``work`` for each of ``items``, ``limit`` at a time; stop all at the first failure.

    Raises TierUnavailable where ``work`` does.
    """
    waiting = iter(items)

    async def work_through() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(work_through())
    except* TierUnavailable as failures:
        raise TierUnavailable(str(failures.exceptions[0])) from None


async def first_success(attempts: Iterable[Coroutine[Any, Any, T]]) -> T:
    """Return the result of the first of ``attempts`` that succeeds, and cancel the others.

    So an attempt that hangs costs nothing while another succeeds. Raises what the last one to
    fail raised if all failed, and ValueError if there are none.
    """
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    try:
        failure: Exception | None = None
        for task in asyncio.as_completed(tasks):
            try:
                return await task
            except Exception as error:
                failure = error
        raise failure or ValueError("there are no attempts")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
