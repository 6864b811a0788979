"""How many lines of one kind are written: the first of each interval; the rest are counted.

So a caller who can cause a line cannot fill the disk with it, and a flood of one kind hides no
other kind.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple


class Limit(NamedTuple):
    """So many lines of a kind are written in so long an interval."""

    lines: int
    interval_s: float


LIMIT = Limit(20, 10.0)
CALLS = Limit(100, 1.0)
"""For the line that each call gets, for each outcome of a call.

The interval is short so that a burst of calls writes as little as the same number spread out: no
more than 42 KB of log in any second, however fast the machine takes calls.
"""
STANDARD_ERROR = Limit(200, 10.0)
"""For lines that native libraries write: a Python traceback takes many."""
UNLIMITED = Limit(sys.maxsize, 10.0)
_KINDS = 256
_OTHERS = "all kinds beyond the first 256"

Line = dict[str, object]


@dataclass(slots=True)
class _Kind:
    until_s: float
    seen: int = 0
    held_back: int = 0
    last: Line = field(default_factory=dict)
    """The last line held back. Where a state goes back and forth, this is the current one."""


class Repeats:
    """Allows so many lines of each kind in an interval. Thread-safe.

    When the interval of a kind ends, its last line that was held back is written after all. Its
    field ``left_out`` is the number of other lines that were held back, and are lost.
    """

    def __init__(
        self, write: Callable[[Line], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``write`` gets the line that is written after all. Any thread may call it."""
        self._write = write
        self._clock = clock
        # Not a plain lock: a finalizer that runs while it is held may log too.
        self._lock = threading.RLock()
        self._kinds: dict[Hashable, _Kind] = {}
        self._timer: threading.Timer | None = None
        self._timer_at_s = math.inf

    def allows(self, name: Hashable, limit: Limit = LIMIT) -> bool:
        """Count a line of the kind ``name``; return whether to write it.

        The caller passes a line that is not allowed to ``hold_back``, with the same limit.
        """
        kind = self._kinds.get(name)
        if kind.until_s <= self._clock() if kind else len(self._kinds) >= _KINDS:
            self._end_intervals()
        with self._lock:
            kind = self._kind(name, limit)
            kind.seen += 1
            return kind.seen <= limit.lines

    def hold_back(self, name: Hashable, line: Line, limit: Limit = LIMIT) -> None:
        """Keep a line that was not allowed, in place of the one before it."""
        with self._lock:
            kind = self._kind(name, limit)
            kind.held_back += 1
            kind.last = line
            if kind.until_s < self._timer_at_s:
                self._start_timer(kind.until_s)

    def flush(self) -> None:
        """End every interval now."""
        self._end_intervals(all_kinds=True)

    def _end_intervals(self, *, all_kinds: bool = False) -> None:
        with self._lock:
            self._stop_timer()
            ended = []
            for name, kind in list(self._kinds.items()):
                if all_kinds or kind.until_s <= self._clock():
                    ended.append(kind)
                    self._kinds.pop(name, None)
                elif kind.held_back and kind.until_s < self._timer_at_s:
                    self._start_timer(kind.until_s)
        # Outside the lock: ``write`` may log, or wait for a thread that does.
        for kind in ended:
            if kind.held_back:
                self._write({**kind.last, "left_out": kind.held_back - 1})

    def _kind(self, name: Hashable, limit: Limit) -> _Kind:
        if name not in self._kinds and len(self._kinds) >= _KINDS:
            name, limit = _OTHERS, LIMIT
        return self._kinds.setdefault(name, _Kind(self._clock() + limit.interval_s))

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer, self._timer_at_s = None, math.inf

    def _start_timer(self, at_s: float) -> None:
        self._stop_timer()
        self._timer_at_s = at_s
        self._timer = threading.Timer(max(0.0, at_s - self._clock()), self._end_intervals)
        self._timer.daemon = True
        self._timer.start()
