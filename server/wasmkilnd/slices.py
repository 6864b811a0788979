"""Long work on the event loop, in slices: others have their turns between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterable
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

SLICE_S = 0.002
"""How long the loop is held at a time: a caller with little work meets a few such slices."""

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def in_slices(steps: Generator[object, None, T]) -> T:
    """Run ``steps`` to their end; return what they return.

    Its first step is taken at once, since most work has no second. From then on the loop
    runs one slice in each of its rounds, of one piece of work after the other: however
    many pieces there are, nobody else waits for more than one slice.
    """
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    try:
        next(steps)
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
    """Make a list of ``items``, which are made one by one, in slices."""
    made: list[T] = []

    def steps() -> Generator[None, None, list[T]]:
        for item in items:
            made.append(item)
            yield
        return made

    return await in_slices(steps())
