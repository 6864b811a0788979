"""Doing the same for many values, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from wasmkilnd.errors import TierUnavailable

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Do ``work`` for each of ``items``, ``at_once`` at a time; the first failure ends all.

    Raises TierUnavailable where ``work`` does.
    """
    waiting = iter(items)

    async def one_after_the_other() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one_after_the_other())
    except* TierUnavailable as failures:
        raise TierUnavailable(str(failures.exceptions[0])) from None
