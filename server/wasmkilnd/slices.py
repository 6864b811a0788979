"""Long work on the event loop, cut into slices between which other tasks run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterable
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

SLICE_S = 0.002
"""How long one slice holds the loop: a caller with little work waits for a few slices."""

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def in_slices(steps: Generator[object, None, T]) -> T:
    """Run ``steps`` to its end; return what it returns.

    The first step runs at once, since most work has no second. After that the loop runs one
    slice per round, for one piece of work after the other: however many pieces are under way,
    no other task waits for more than one slice.
    """
    try:
        next(steps)
        turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        while True:
            async with turns:
                until = time.perf_counter() + SLICE_S
                while time.perf_counter() < until:
                    next(steps)
                await asyncio.sleep(0)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        steps.close()


async def collect_in_slices(items: Iterable[T]) -> list[T]:
    """Return a list of ``items``, which are produced in slices."""
    collected: list[T] = []

    def steps() -> Generator[None, None, list[T]]:
        for item in items:
            collected.append(item)
            yield
        return collected

    return await in_slices(steps())
