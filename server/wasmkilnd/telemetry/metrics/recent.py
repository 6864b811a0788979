"""The last compiles of the daemon, for the status page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Final

KEPT: Final = 50
_MAX_TEXT = 80
"""Callers choose the digest and the engine of a call that fails; no more of them is kept."""


@dataclass(frozen=True, slots=True)
class RecentCompile:
    """How a compile ended, or several of one module that ended alike, one after the other."""

    ended_s: float
    """When the last of them ended, in seconds since 1970."""
    module: str
    engine: str
    origin: str
    """Where the artifact came from; empty where there is none."""
    reason: str
    """Why there is no artifact; empty where there is one."""
    took_s: float
    """How long the last of them took, its wait in the queue included."""
    count: int = 1


class RecentCompiles:
    """Keeps the last 50. Thread-safe; adding takes about a microsecond."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: deque[RecentCompile] = deque(maxlen=KEPT)
        self._lock = Lock()

    def add(self, module: str, engine: str, origin: str, reason: str, took_s: float) -> None:
        """Note a compile that ended now.

        One that ended as the one before it did is counted there, so that a caller that tries again
        and again leaves room for others.
        """
        new = RecentCompile(
            self._clock(), module[:_MAX_TEXT], engine[:_MAX_TEXT], origin, reason, took_s
        )
        with self._lock:
            if self._kept and _alike(self._kept[-1], new):
                new = replace(new, count=self._kept.pop().count + 1)
            self._kept.append(new)

    def newest_first(self) -> Sequence[RecentCompile]:
        """Return those that are kept."""
        with self._lock:
            return tuple(reversed(self._kept))


def _alike(one: RecentCompile, other: RecentCompile) -> bool:
    return (one.module, one.engine, one.origin, one.reason) == (
        other.module,
        other.engine,
        other.origin,
        other.reason,
    )
