"""Counters, and families of series whose labels cannot grow without end."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Final, Generic, TypeVar

S = TypeVar("S")

OTHER: Final = "other"
"""The label of everything that was not expected."""


class Count:
    """A number that only grows. Thread-safe."""

    __slots__ = ("_lock", "_value")

    def __init__(self) -> None:
        self._value = 0
        self._lock = Lock()

    def add(self, amount: int = 1) -> None:
        """Count ``amount`` more."""
        with self._lock:
            self._value += amount

    @property
    def value(self) -> int:
        """The number so far."""
        return self._value


class Family(Generic[S]):
    """One series per set of label values: a metric.

    Sets are added beforehand, which also makes them visible at zero. One that was
    was not is taken in while there is ``room``, and counted under ``other`` after
    that: a label never grows with what callers send. Thread-safe; look-ups of what
    was added take no lock.
    """

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        make: Callable[[], S],
        room: int = 0,
    ) -> None:
        """Begin without series. ``name`` goes without the ``wasmkiln_`` and any suffix."""
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self._make = make
        self._room = room
        self._series: dict[tuple[str, ...], S] = {}
        self._lock = Lock()  # held for additions only

    def add(self, *values: str) -> S:
        """Return the series with these label values, beginning it if it is new."""
        with self._lock:
            return self._series.setdefault(values, self._make())

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

    def _unexpected(self, values: tuple[str, ...]) -> S:
        with self._lock:
            if values not in self._series:  # else another thread was faster
                if self._room > 0:
                    self._room -= 1
                else:
                    values = self._other(values)
            return self._series.setdefault(values, self._make())

    def _other(self, values: tuple[str, ...]) -> tuple[str, ...]:
        # The last labels are given up first: ("redis", "other") says more than "other" twice.
        for kept in range(len(values) - 1, 0, -1):
            near = values[:kept] + (OTHER,) * (len(values) - kept)
            if near in self._series:
                return near
        return (OTHER,) * len(self.labels)
