"""Whether jobs get on: what the daemon asks itself before it answers the service's watchdog."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

# A worker that has not started after a minute is given up, and its jobs learn the cause.
STUCK_S = 150.0


class Pool(Protocol):
    """What ``Progress`` looks at of an engine's workers."""

    @property
    def waiting(self) -> int:
        """How many jobs wait for a worker."""
        ...

    @property
    def busy(self) -> int:
        """How many workers have a job."""
        ...

    @property
    def why_no_worker(self) -> str:
        """Why the engine has no worker, where that is known: its jobs are refused."""
        ...


class Progress:
    """Whether jobs that wait get a worker. For one event loop.

    While jobs wait, workers are busy or the engine says why it has none. Where neither holds for
    minutes, what hands out workers has died, and only a restart helps.
    """

    def __init__(
        self, pools: Callable[[], Iterable[Pool]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pools = pools
        self._clock = clock
        self._stuck_since_s: float | None = None

    def holds(self) -> bool:
        """Look, and return whether the daemon gets on; call it again and again."""
        stuck = any(
            pool.waiting and not pool.busy and not pool.why_no_worker for pool in self._pools()
        )
        if not stuck:
            self._stuck_since_s = None
            return True
        if self._stuck_since_s is None:
            self._stuck_since_s = self._clock()
        return self._clock() - self._stuck_since_s < STUCK_S
