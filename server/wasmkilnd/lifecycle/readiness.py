"""Whether calls are served, and why not: one answer for /readyz, gRPC health and the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.model import UnservedEngine

log = structlog.get_logger("wasmkilnd")

_INTERVAL_S = 0.25
_STARTING = "starting"


class Readiness:
    """Follows the engines: calls are served while at least one of them works.

    A sick Redis makes no call fail: it is told of, and changes nothing. For one event loop.
    """

    def __init__(self) -> None:
        self._redis_detail: Callable[[], str] = str
        self._engines: Sequence[ServedEngine] = ()
        self._unserved: Sequence[UnservedEngine] = ()
        self._phase = _STARTING

    def started(
        self,
        engines: Sequence[ServedEngine],
        unserved: Sequence[UnservedEngine],
        redis_detail: Callable[[], str],
    ) -> None:
        """From now on the engines decide, unless the daemon drains already.

        ``redis_detail`` says what is wrong with Redis, if anything.
        """
        self._engines, self._unserved = engines, unserved
        self._redis_detail = redis_detail
        if self._phase == _STARTING:
            self._phase = ""

    def draining(self) -> None:
        """From now on nothing is served, whatever the engines do."""
        self._phase = "draining"

    def now(self) -> tuple[bool, str]:
        """Return whether calls are served, and a sentence that says what is wrong, if anything."""
        if self._phase:
            return False, self._phase
        wrong = [f"{one.id} is not served: {one.cause}" for one in self._unserved]
        wrong += [
            f"{engine.id} has no worker: {engine.pool.ailing}"
            for engine in self._engines
            if engine.pool.ailing
        ]
        ready = len(wrong) < len(self._engines) + len(self._unserved)
        if detail := self._redis_detail():
            wrong.append(detail)
        return ready, "; ".join(["ready" if ready else "no engine works", *wrong])

    async def follow(self, tell: Callable[[bool], None]) -> None:
        """Tell of every change until cancelled."""
        told, _ = self.now()
        while True:
            await asyncio.sleep(_INTERVAL_S)
            ready, why = self.now()
            if ready == told or self._phase:
                continue
            told = ready
            if ready:
                log.info("serving again", detail=why)
            else:
                log.error("not serving", cause=why)
            tell(ready)
