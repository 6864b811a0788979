"""Look-ups in the shared tier, one for all who want the same thing at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Generic, TypeVar

from wasmkilnd.cache.patience import Patience
from wasmkilnd.errors import TierUnavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Allowance:
    """When a look-up began, and what it may take on top of its callers' patience."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._seconds = 0.0
        self._since_s = 0.0
        self._is_free: Callable[[], bool] = lambda: False

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    def seconds(self) -> float:
        if self._is_free():
            return self._seconds + time.monotonic() - self._since_s
        return self._seconds

    @contextlib.contextmanager
    def while_free(self, is_free: Callable[[], bool]) -> Iterator[None]:
        self._since_s, self._is_free = time.monotonic(), is_free
        try:
            yield
        finally:
            self._seconds, self._is_free = self.seconds(), lambda: False


_of_this_fetch: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


def allow(seconds: float) -> None:
    """Let whoever waits for the look-up in whose context this runs wait ``seconds`` more.

    For what a value's bytes may take on a slow line: that is work, and no illness.
    """
    (_of_this_fetch.get() or _Allowance()).add(seconds)


def waiting_in_line(is_free: Callable[[], bool]) -> AbstractContextManager[None]:
    """Let those wait as long as this context lasts, unless ``is_free`` answers False by its end.

    For what a look-up waits for that is this daemon's own.
    """
    return (_of_this_fetch.get() or _Allowance()).while_free(is_free)


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
            return await patience.share(task, allowance.began_s, allowance.seconds)
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
