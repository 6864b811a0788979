"""Renders /metrics, however many ask for it, in a small part of the daemon's time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# Of the time that rendering takes: what everything else has before the next.
_PAUSE = 4.0


class Rendered:
    """Renders a page for all that ask at about the same time, once, after the first of them did.

    So whoever floods the page with requests keeps the daemon busy for a fifth of its time at
    most, and nobody gets a page that is older than the request for it. For one event loop.
    """

    def __init__(self) -> None:
        self._next: dict[str, asyncio.Task[bytes]] = {}
        self._not_before_s = 0.0

    async def get(self, kind: str, render: Callable[[], bytes]) -> bytes:
        """Return what ``render`` returns; calls with the same ``kind`` share it."""
        task = self._next.get(kind)
        if task is None:
            task = self._next[kind] = asyncio.create_task(self._render(kind, render))
        return await asyncio.shield(task)

    async def _render(self, kind: str, render: Callable[[], bytes]) -> bytes:
        try:
            await asyncio.sleep(max(0.0, self._not_before_s - time.monotonic()))
        finally:
            del self._next[kind]  # Who asks from here on gets the next.
        began_s = time.monotonic()
        try:
            return render()
        finally:
            ended_s = time.monotonic()
            self._not_before_s = ended_s + _PAUSE * (ended_s - began_s)
