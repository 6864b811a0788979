"""A circuit breaker: stop asking a server that does not answer, until it answers again.

While the breaker is closed, calls go through. The first outage opens it. While it is open,
calls fail at once without touching the network, and a background task, never a caller, probes
the server, waiting longer each time, until it answers. So an outage costs the callers of that
moment one time-out at most, and later callers nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from wasmkilnd.errors import TierUnavailable, forget_frames

T = TypeVar("T")

_log = structlog.get_logger("wasmkilnd.cache")


class Breaker:
    """Guards calls to one server. For one event loop.

    ``probe`` sends the server something cheap and raises if it does not answer.
    ``is_outage`` tells an outage from a refusal, which leaves the breaker closed.
    ``explain`` describes an error without secrets.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[None]],
        is_outage: Callable[[Exception], bool],
        explain: Callable[[Exception], str],
        *,
        first_wait_s: float = 0.25,
        longest_wait_s: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._probe = probe
        self._is_outage = is_outage
        self._explain = explain
        self._first_wait_s = min(first_wait_s, longest_wait_s)
        self._longest_wait_s = longest_wait_s
        self._sleep = sleep
        self._clock = clock
        self._closed = asyncio.Event()
        self._closed.set()
        self._closed_at = -longest_wait_s
        self._wait_s = self._first_wait_s
        self._prober: asyncio.Task[None] | None = None
        self._proven = False
        self._detail = "not asked yet"

    @property
    def open(self) -> bool:
        """Whether calls fail at once now."""
        return not self._closed.is_set()

    @property
    def up(self) -> bool:
        """Whether the server answered the last time it was asked."""
        return self._proven and not self.open

    @property
    def detail(self) -> str:
        """What is wrong, without secrets; empty while the server is up."""
        return "" if self.up else self._detail

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what ``work`` returns.

        Raises TierUnavailable if ``work`` raises an Exception, and at once,
        without calling ``work``, while the breaker is open.
        """
        if self.open:
            raise TierUnavailable(self._detail)
        try:
            answer = await work()
        except Exception as error:
            # Not `from error`: a traceback in a log would contain its secrets.
            explained = self._explain(error)
            forget_frames(error)  # Frames hold values, and clients keep their errors.
            if self._is_outage(error):
                self._trip(explained)
            else:
                self._proven = True  # A refusal is an answer.
            # Keep the class of an error that is described already.
            is_described = isinstance(error, TierUnavailable)
            raise (error if is_described else TierUnavailable(explained)) from None
        self._proven = True
        return answer

    async def wait_closed(self) -> None:
        """Return when calls go through again."""
        await self._closed.wait()

    async def close(self) -> None:
        """Stop probing."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    def _trip(self, why: str) -> None:
        if self.open:
            return  # A call that began before the breaker opened; the first one has logged it.
        if self._clock() - self._closed_at > self._longest_wait_s:
            self._wait_s = self._first_wait_s
        # Else it flaps: it answers the probe and nothing more. Keep the waits growing.
        self._detail = why
        self._closed.clear()
        _log.warning("tier is down", tier=self._name, detail=why)
        self._prober = asyncio.create_task(self._probe_until_it_answers())

    async def _probe_until_it_answers(self) -> None:
        opened_at = self._clock()
        while True:
            await self._sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, self._longest_wait_s)
            try:
                await self._probe()
            except Exception as error:
                self._detail = self._explain(error)
                forget_frames(error)
                continue
            break
        self._closed_at = self._clock()
        self._proven = True
        self._closed.set()
        _log.info("tier is up again", tier=self._name, down_s=round(self._closed_at - opened_at, 1))
