"""What happened in the last hour: samples, and the columns of a chart that they make up."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STEP_S: Final = 5.0
"""How far apart samples are."""
KEPT: Final = 720
"""An hour of them."""
COLUMNS: Final = 60
_LATEST: Final = 3
_WINDOWS_S: Final = (300.0, 900.0, 3600.0)


@dataclass(slots=True, kw_only=True)
class Figures:
    """What happened in a stretch of time; of the queue and of workers, the most there were."""

    span_s: float
    served: Sequence[int]
    """Calls answered, in the order of ``origins.ORIGINS``."""
    compiled: int = 0
    failed: int = 0
    took_s: float = 0.0
    """The sum over the compiles that succeeded."""
    slowest_s: float = 0.0
    queued: int = 0
    busy: int = 0
    workers: int = 0

    def add(self, other: Figures) -> None:
        """Count in another stretch of time."""
        self.span_s += other.span_s
        self.served = [one + more for one, more in zip(self.served, other.served, strict=True)]
        self.compiled += other.compiled
        self.failed += other.failed
        self.took_s += other.took_s
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.queued = max(self.queued, other.queued)
        self.busy = max(self.busy, other.busy)
        self.workers = max(self.workers, other.workers)

    def per_s(self, count: int) -> float:
        """Return a count as a rate."""
        return count / self.span_s if self.span_s else 0.0

    @property
    def mean_s(self) -> float:
        """How long a compile took, on average."""
        return self.took_s / self.compiled if self.compiled else 0.0


@dataclass(slots=True, kw_only=True)
class Sample(Figures):
    """What happened since the sample before."""

    at_s: float
    """Its end, in seconds since 1970."""


@dataclass(slots=True, kw_only=True)
class Column(Figures):
    """What samples of the same stretch of time add up to."""

    begins_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """What charts show: the oldest column first, None where nothing is known."""

    seconds: float
    columns: Sequence[Column | None]

    @property
    def known(self) -> Sequence[Column]:
        """The columns that something is known of."""
        return [each for each in self.columns if each]

    @property
    def latest(self) -> Figures:
        """The last columns as one, as the very last may have begun just now."""
        latest = Figures(span_s=0.0, served=[0] * len(self.known[-1].served))
        for column in self.known[-_LATEST:]:
            latest.add(column)
        return latest

    @property
    def served(self) -> Sequence[int]:
        """Calls answered in all of it, by origin."""
        return [sum(each) for each in zip(*(one.served for one in self.known), strict=True)]


class History:
    """The samples of the last hour."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    def add(self, sample: Sample) -> None:
        """Keep a sample; it drops the oldest once there are enough."""
        self._samples.append(sample)

    def window(self, latest: Sample) -> Window:
        """Return the shortest window that shows all samples, up to ``latest``, which is not kept.

        Columns begin at round times, so that what a column shows does not change as time goes on.
        """
        samples = [*self._samples, latest]
        age_s = latest.at_s - (samples[0].at_s - samples[0].span_s)
        seconds = next((each for each in _WINDOWS_S if age_s <= each), _WINDOWS_S[-1])
        step_s = seconds / COLUMNS
        first = int(latest.at_s // step_s) - COLUMNS + 1
        columns: list[Column | None] = [None] * COLUMNS
        for sample in samples:
            # A sample belongs where most of it happened.
            index = int((sample.at_s - sample.span_s / 2) // step_s) - first
            if not 0 <= index < COLUMNS:
                continue
            column = columns[index]
            if column is None:
                begins_s = (first + index) * step_s
                column = columns[index] = Column(
                    begins_s=begins_s, span_s=0.0, served=[0] * len(sample.served)
                )
            column.add(sample)
        return Window(seconds, columns)
