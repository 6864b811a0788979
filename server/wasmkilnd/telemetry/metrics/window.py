"""One series of durations: what Prometheus and Stats both read."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

SAMPLES: Final = 1024
"""How many of the last samples percentiles are taken over."""


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """A series in five numbers, in seconds. ``count`` and ``sum_s`` are since the start."""

    count: int = 0
    sum_s: float = 0.0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0


class Window:
    """Count, sum and buckets of all samples, and the last 1,024 themselves.

    Thread-safe. Both readings come from one set of numbers, so that /metrics and
    Stats cannot disagree.
    """

    __slots__ = ("_bounds", "_buckets", "_lock", "_samples", "_sum_s")

    def __init__(self, bounds: Sequence[float] = (), samples: int = SAMPLES) -> None:
        """Begin empty. ``bounds`` are the buckets' inclusive upper ends in seconds, ascending."""
        self._bounds = tuple(bounds)
        self._buckets = [0] * (len(self._bounds) + 1)
        self._samples: deque[float] = deque(maxlen=samples)
        self._sum_s = 0.0
        self._lock = Lock()

    def add(self, seconds: float) -> None:
        """Take one sample. What is no duration (negative, infinite, NaN) counts as 0."""
        if not 0.0 <= seconds < math.inf:
            seconds = 0.0
        bucket = bisect_left(self._bounds, seconds)
        with self._lock:
            self._buckets[bucket] += 1
            self._sum_s += seconds
            self._samples.append(seconds)

    @property
    def count(self) -> int:
        """Samples since the start."""
        with self._lock:
            return sum(self._buckets)

    def summary(self) -> LatencySummary:
        """Return count and sum, and percentiles by nearest rank."""
        with self._lock:
            count, sum_s, samples = sum(self._buckets), self._sum_s, list(self._samples)
        samples.sort()  # outside the lock: who records does not wait for who reads
        return LatencySummary(
            count, sum_s, _rank(samples, 50), _rank(samples, 90), _rank(samples, 99)
        )

    def buckets(self) -> tuple[list[tuple[float, int]], float]:
        """Return each upper end with the samples up to it, the last one infinite; and the sum."""
        with self._lock:
            counts, sum_s = list(self._buckets), self._sum_s
        cumulative, reached = [], 0
        for bound, count in zip((*self._bounds, math.inf), counts, strict=True):
            reached += count
            cumulative.append((bound, reached))
        return cumulative, sum_s


def _rank(ordered: Sequence[float], percent: int) -> float:
    # Integers, since ceil(0.99 * 100) would be at the mercy of rounding.
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0.0
