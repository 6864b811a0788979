"""How many lines of one kind are written: the first of each interval; the rest are counted.

So a caller who can cause a line cannot fill the disk with it, and a flood of one kind hides no
other kind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

INTERVAL_S = 10.0
LINES = 20
"""Lines of one kind in an interval."""
CALL_LINES = 1000
"""The same for the line that each call gets, for each outcome of a call."""
STANDARD_ERROR_LINES = 200
"""The same for lines that native libraries write: a Python traceback takes many."""
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

    def allows(self, name: Hashable, lines: int = LINES) -> bool:
        """Count a line of the kind ``name``; return whether to write it.

        The caller passes a line that is not allowed to ``hold_back``.
        """
        kind = self._kinds.get(name)
        if kind.until_s <= self._clock() if kind else len(self._kinds) >= _KINDS:
            self._end_intervals()
        with self._lock:
            kind = self._kind(name)
            kind.seen += 1
            return kind.seen <= lines

    def hold_back(self, name: Hashable, line: Line) -> None:
        """Keep a line that was not allowed, in place of the one before it."""
        with self._lock:
            kind = self._kind(name)
            kind.held_back += 1
            kind.last = line
            if self._timer is None:
                self._start_timer(kind.until_s)

    def flush(self) -> None:
        """End every interval now."""
        self._end_intervals(all_kinds=True)

    def _end_intervals(self, *, all_kinds: bool = False) -> None:
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            ended = []
            for name, kind in list(self._kinds.items()):
                if all_kinds or kind.until_s <= self._clock():
                    ended.append(kind)
                    self._kinds.pop(name, None)
                elif kind.held_back and self._timer is None:
                    self._start_timer(kind.until_s)  # kinds are in the order of their ends
        # Outside the lock: ``write`` may log, or wait for a thread that does.
        for kind in ended:
            if kind.held_back:
                self._write({**kind.last, "left_out": kind.held_back - 1})

    def _kind(self, name: Hashable) -> _Kind:
        if name not in self._kinds and len(self._kinds) >= _KINDS:
            name = _OTHERS
        return self._kinds.setdefault(name, _Kind(self._clock() + INTERVAL_S))

    def _start_timer(self, at_s: float) -> None:
        self._timer = threading.Timer(max(0.0, at_s - self._clock()), self._end_intervals)
        self._timer.daemon = True
        self._timer.start()
