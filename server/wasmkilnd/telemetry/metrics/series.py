"""What prometheus_client's series lack: labels with a bound, percentiles, and a way to read."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final, Generic, TypeVar

from prometheus_client import Counter, Histogram, values

S = TypeVar("S")

# The daemon is one process. Without this line, PROMETHEUS_MULTIPROC_DIR in its environment would
# have the library keep every counter in files of that folder.
values.ValueClass = values.MutexValue

OTHER: Final = "other"
"""The label of everything that was not expected."""
SAMPLES: Final = 1024
"""How many of the last durations the percentiles are taken over."""


class Bounded(Generic[S]):
    """The series of one metric, whose labels never grow with what callers send.

    The daemon adds the sets of label values that it expects, which also makes them visible at
    zero. Another set gets a series of its own while there is ``room``; after that it counts
    under ``other``. Thread-safe. Finding a set that was added takes no lock, and a fifth of
    the time of prometheus_client's ``labels()``.
    """

    def __init__(self, make: Callable[..., S], room: int = 0) -> None:
        """``make`` gets the label values and returns their series, as ``Counter.labels`` does."""
        self._make = make
        self._room = room
        self._series: dict[tuple[str, ...], S] = {}
        self._lock = Lock()  # held for additions only

    def add(self, *values: str) -> S:
        """Return the series with these label values; make it if it is new."""
        with self._lock:
            return self._added(values)

    def at(self, *values: str) -> S:
        """Return the series that counts for these label values."""
        series = self._series.get(values)
        return series if series is not None else self._unexpected(values)

    def all(self) -> list[tuple[tuple[str, ...], S]]:
        """Return every series with its label values."""
        with self._lock:
            return list(self._series.items())

    def known(self, *values: str) -> tuple[str, ...]:
        """Return these label values if they have a series of their own, else the other's."""
        return values if values in self._series else self._other(values)

    def _added(self, values: tuple[str, ...]) -> S:
        if values not in self._series:
            self._series[values] = self._make(*values)
        return self._series[values]

    def _unexpected(self, values: tuple[str, ...]) -> S:
        with self._lock:
            if values not in self._series:  # else another thread was faster
                if self._room > 0:
                    self._room -= 1
                else:
                    values = self._other(values)
            return self._added(values)

    def _other(self, values: tuple[str, ...]) -> tuple[str, ...]:
        # Keep as many labels as are known: ("redis", "other") says more than "other" twice.
        for kept in range(len(values) - 1, 0, -1):
            near = values[:kept] + (OTHER,) * (len(values) - kept)
            if near in self._series:
                return near
        return (OTHER,) * len(values)


def count_of(counter: Counter) -> int:
    """Return what ``counter`` has reached."""
    (metric,) = counter.collect()
    return int(metric.samples[0].value)


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """A series of durations in five numbers, in seconds. Count and sum are since the start."""

    count: int = 0
    sum_s: float = 0.0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0


class Latency:
    """A series of durations: a histogram for Prometheus, the last 1,024 for Stats. Thread-safe."""

    __slots__ = ("_count", "_histogram", "_lock", "_samples", "_sum_s")

    def __init__(self, histogram: Histogram) -> None:
        """Begin empty. ``histogram`` observes each duration too."""
        self._histogram = histogram
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._count = 0
        self._sum_s = 0.0
        self._lock = Lock()

    def add(self, seconds: float) -> None:
        """Take one duration. A negative, infinite or undefined one counts as 0."""
        if not 0.0 <= seconds < math.inf:
            seconds = 0.0
        self._histogram.observe(seconds)
        with self._lock:
            self._count += 1
            self._sum_s += seconds
            self._samples.append(seconds)

    @property
    def count(self) -> int:
        """How many durations there were since the start."""
        return self._count

    def last(self, count: int) -> list[float]:
        """Return the last ``count`` durations, or as many of them as are kept, the newest first."""
        with self._lock:
            return list(itertools.islice(reversed(self._samples), count))

    def summary(self) -> LatencySummary:
        """Return count and sum, and percentiles by nearest rank."""
        with self._lock:
            count, sum_s, samples = self._count, self._sum_s, list(self._samples)
        samples.sort()  # outside the lock: a reader must not hold up those who record
        return LatencySummary(
            count, sum_s, _rank(samples, 50), _rank(samples, 90), _rank(samples, 99)
        )


def _rank(ordered: Sequence[float], percent: int) -> float:
    # Integers, since ceil(0.99 * 100) would be at the mercy of rounding.
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0.0
