"""Look-ups in the shared tier, one for all who want the same thing at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.wait_budget import Allowance, WaitBudget

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SharedLookups(Generic[K, V]):
    """Looks up what several wait for, each as long as its own budget lasts.

    A hundred callers of one artifact fetch it once, not a hundred times 40 MB. One whose
    budget ends goes its way; the look-up goes on for the others. For one event loop.
    """

    def __init__(self) -> None:
        self._under_way: dict[K, tuple[asyncio.Task[V | None], Allowance]] = {}

    async def get(
        self, key: K, look_up: Callable[[Allowance], Awaitable[V | None]], budget: WaitBudget
    ) -> V | None:
        """Return what ``look_up`` returns, None if it cannot or takes too long.

        It is given what it may let everybody wait for on top of their budgets.
        """
        if budget.spent:
            return None
        if key not in self._under_way:
            allowance = Allowance()
            task = asyncio.create_task(self._run(key, look_up, allowance))
            self._under_way[key] = task, allowance
        task, allowance = self._under_way[key]
        try:
            return await budget.share(task, allowance)
        except TierUnavailable:
            return None

    async def _run(
        self, key: K, look_up: Callable[[Allowance], Awaitable[V | None]], allowance: Allowance
    ) -> V | None:
        try:
            return await look_up(allowance)
        except TierUnavailable:
            return None
        finally:
            del self._under_way[key]
