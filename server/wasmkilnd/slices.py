"""Long work on the event loop, cut into slices between which other tasks run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

SLICE_S = 0.002
"""How long one slice holds the loop: a caller with little work waits for a few slices."""

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def in_slices(steps: Iterable[T]) -> list[T]:
    """Return a list of ``steps``, each of which is work.

    The first step runs at once, since most work has no second. After that the loop runs one
    slice per round, for one piece of work after the other: however many pieces are under way,
    no other task waits for more than one slice.
    """
    rest = iter(steps)
    made = list(islice(rest, 1))
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    while made:
        async with turns:
            until = time.perf_counter() + SLICE_S
            for step in rest:
                made.append(step)
                if time.perf_counter() >= until:
                    break
            else:
                break
            await asyncio.sleep(0)
    return made
