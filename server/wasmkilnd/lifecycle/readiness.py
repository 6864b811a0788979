"""Whether the daemon serves calls, and if not, why: for /readyz, gRPC health and the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.model import UnservedEngine

log = structlog.get_logger("wasmkilnd")

_INTERVAL_S = 0.25
_STARTING = "starting"


class Readiness:
    """Follows the engines: the daemon serves calls while at least one of them works.

    A Redis that is down makes no call fail: it is mentioned, and the daemon stays ready. For one
    event loop.
    """

    def __init__(self) -> None:
        self._redis_detail: Callable[[], str] = str
        self._engines: Callable[[], Sequence[ServedEngine]] = tuple
        self._unserved: Callable[[], Sequence[UnservedEngine]] = tuple
        self._phase = _STARTING

    def started(
        self,
        engines: Callable[[], Sequence[ServedEngine]],
        unserved: Callable[[], Sequence[UnservedEngine]],
        redis_detail: Callable[[], str],
    ) -> None:
        """Let the engines decide from now on, unless the daemon already drains.

        ``engines`` and ``unserved`` return those of the moment: a reload changes them.
        ``redis_detail`` says what is wrong with Redis, if anything.
        """
        self._engines, self._unserved = engines, unserved
        self._redis_detail = redis_detail
        if self._phase == _STARTING:
            self._phase = ""

    def draining(self) -> None:
        """Be not ready from now on, whatever the engines do."""
        self._phase = "draining"

    def now(self) -> tuple[bool, str]:
        """Return whether the daemon serves calls, and a sentence on what is wrong, if anything."""
        if self._phase:
            return False, self._phase
        engines, unserved = self._engines(), self._unserved()
        wrong = [f"{one.id} is not served: {one.cause}" for one in unserved]
        wrong += [
            f"{engine.id} has no worker: {engine.pool.why_no_worker}"
            for engine in engines
            if engine.pool.why_no_worker
        ]
        ready = len(wrong) < len(engines) + len(unserved)
        if detail := self._redis_detail():
            wrong.append(detail)
        return ready, "; ".join(["ready" if ready else "no engine works", *wrong])

    async def follow(self, report: Callable[[bool], None]) -> None:
        """Report every change until cancelled."""
        reported, _ = self.now()
        while True:
            await asyncio.sleep(_INTERVAL_S)
            ready, why = self.now()
            if ready == reported or self._phase:
                continue
            reported = ready
            if ready:
                log.info("serving again", detail=why)
            else:
                log.error("not serving", cause=why)
            report(ready)
