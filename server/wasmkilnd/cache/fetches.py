"""Look-ups in the shared tier, one for all who want the same thing at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

from wasmkilnd.cache.patience import Patience
from wasmkilnd.errors import TierUnavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Allowance:
    seconds: float = 0.0


_of_this_fetch: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


def allow(seconds: float) -> None:
    """Let whoever waits for the look-up in whose context this runs wait ``seconds`` more.

    For what a value's bytes may take on a slow line: that is work, and no illness.
    """
    allowance = _of_this_fetch.get()
    if allowance is not None:
        allowance.seconds += seconds


class Fetches(Generic[K, V]):
    """Looks up what several wait for, each as long as its own patience lasts.

    A hundred callers of one artifact fetch it once, not a hundred times 40 MB. One whose
    patience ends goes its way; the look-up goes on for the others. For one event loop.
    """

    def __init__(self) -> None:
        self._under_way: dict[K, tuple[asyncio.Task[V | None], _Allowance]] = {}

    async def get(
        self, key: K, look_up: Callable[[], Awaitable[V | None]], patience: Patience
    ) -> V | None:
        """Answer what ``look_up`` answers, None if it cannot or takes too long."""
        if patience.spent:
            return None
        if key not in self._under_way:
            allowance = _Allowance()
            task = asyncio.create_task(self._run(key, look_up, allowance))
            self._under_way[key] = task, allowance
        task, allowance = self._under_way[key]
        try:
            return await patience.share(task, lambda: allowance.seconds)
        except TierUnavailable:
            return None

    async def _run(
        self, key: K, look_up: Callable[[], Awaitable[V | None]], allowance: _Allowance
    ) -> V | None:
        _of_this_fetch.set(allowance)
        try:
            return await look_up()
        except TierUnavailable:
            return None
        finally:
            del self._under_way[key]
