"""Pages that are made once for all who ask at the same moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# How long the daemon does other work after it made a page, in multiples of that time.
_PAUSE = 4.0


class SharedPage:
    """Renders a page once for all requests that wait for it; a request never gets an older page.

    It then pauses for four times as long as the rendering took, so that a flood of requests
    takes a fifth of the daemon's time at most. For one event loop.
    """

    def __init__(self) -> None:
        self._next: dict[str, asyncio.Task[bytes]] = {}
        self._not_before_s = 0.0
        self._turn = asyncio.Lock()

    async def get(self, kind: str, render: Callable[[], bytes]) -> bytes:
        """Return what ``render`` returns; calls with the same ``kind`` share it."""
        task = self._next.get(kind)
        if task is None:
            task = self._next[kind] = asyncio.create_task(self._render(kind, render))
        return await asyncio.shield(task)

    async def _render(self, kind: str, render: Callable[[], bytes]) -> bytes:
        # One kind after the other, so that many kinds take no more time than one.
        async with self._turn:
            try:
                await asyncio.sleep(max(0.0, self._not_before_s - time.monotonic()))
            finally:
                del self._next[kind]  # a request that comes from here on gets the next page
            began_s = time.monotonic()
            try:
                return render()
            finally:
                ended_s = time.monotonic()
                self._not_before_s = ended_s + _PAUSE * (ended_s - began_s)
