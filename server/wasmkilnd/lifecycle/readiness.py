"""Whether the daemon serves calls, and if not, why: for /readyz, gRPC health, log and watchdog."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog

from wasmkilnd.engines.registry import ServedEngine
from wasmkilnd.model import RemoteStatus, UnservedEngine, for_callers

log = structlog.get_logger("wasmkilnd")

# A worker that has not started after a minute is given up, and its jobs learn the cause.
STUCK_S = 150.0


class Readiness:
    """Follows the engines: the daemon serves calls while at least one of them works.

    A Redis that is down makes no call fail: it is mentioned, and the daemon stays ready. For one
    event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis: Callable[[], RemoteStatus]
        self._engines: Callable[[], Sequence[ServedEngine]] = tuple
        self._unserved: Callable[[], Sequence[UnservedEngine]] = tuple
        self._phase = "starting"
        self._clock, self._got_on_s, self._reported = clock, clock(), True

    def started(
        self,
        engines: Callable[[], Sequence[ServedEngine]],
        unserved: Callable[[], Sequence[UnservedEngine]],
        redis: Callable[[], RemoteStatus],
    ) -> None:
        """Let the engines decide from now on, unless the daemon already drains.

        ``engines`` and ``unserved`` return those of the moment: a reload changes them.
        ``redis`` returns how Redis is, and says what is wrong, if anything.
        """
        self._engines, self._unserved = engines, unserved
        self._redis = redis
        if self._phase == "starting":
            self._phase = ""
        self._reported, _ = self.now()

    def draining(self) -> None:
        """Be not ready from now on, whatever the engines do."""
        self._phase = "draining"

    def now(self) -> tuple[bool, str]:
        """Return whether the daemon serves calls, and a sentence on what is wrong, if anything."""
        if self._phase:
            return False, self._phase
        engines, unserved = self._engines(), self._unserved()
        wrong = [f"{one.id} is not served: {for_callers(one.cause)}" for one in unserved]
        idle = {engine.id: engine.pool.why_no_worker for engine in engines}
        wrong += [f"{name} has no worker: {for_callers(why)}" for name, why in idle.items() if why]
        ready = len(wrong) < len(engines) + len(unserved)
        redis = self._redis()
        if redis.detail and not redis.switched_off:
            wrong.append(for_callers(redis.detail, "Redis is down"))
        return ready, "; ".join(["ready" if ready else "no engine works", *wrong])

    def look(self, report: Callable[[bool], None]) -> bool:
        """Report a change since the last look, and return whether the daemon gets on.

        While jobs wait, workers are busy or the engine says why it has none. Where neither holds
        for minutes, what hands out workers has died, and only a restart helps.
        """
        ready, why = self.now()
        if ready != self._reported and not self._phase:
            self._reported = ready
            if ready:
                log.info("serving again", detail=why)
            else:
                log.error("not serving", cause=why)
            report(ready)
        pools = [engine.pool for engine in self._engines()]
        if not any(each.waiting and not each.busy and not each.why_no_worker for each in pools):
            self._got_on_s = self._clock()
        return self._clock() - self._got_on_s < STUCK_S
