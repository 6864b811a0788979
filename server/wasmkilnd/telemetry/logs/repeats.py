"""Lines of one kind that come in floods: the first are written, the others counted.

So whoever can provoke a line cannot fill the disk with it, and a flood of one kind hides no
other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

INTERVAL_S = 10.0
LINES = 20
"""Of one kind in an interval."""
CALL_LINES = 1000
"""The same of the line that each call gets, for each way in which calls end."""
STANDARD_ERROR_LINES = 200
"""The same of lines that native libraries write: a traceback of Python's takes many."""
_KINDS = 256
_OTHERS = "all kinds beyond those that are known apart"

Line = dict[str, object]


@dataclass(slots=True)
class _Kind:
    until_s: float
    seen: int = 0
    left_out: int = 0
    last: Line = field(default_factory=dict)
    """Of those that were left out: of a state that changes back and forth, the one it is in."""


class Repeats:
    """Lets ``LINES`` lines of each kind through in an interval. Thread-safe.

    When the interval of a kind ends, the last line that was left out is written after all,
    with ``left_out``: how many others were not.
    """

    def __init__(
        self, write: Callable[[Line], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``write`` is for what an interval left out. It may be called from any thread."""
        self._write = write
        self._clock = clock
        # Not a simple lock: a line may be logged by a finalizer that runs in the midst of it.
        self._lock = threading.RLock()
        self._kinds: dict[Hashable, _Kind] = {}
        self._timer: threading.Timer | None = None

    def lets_through(self, name: Hashable, lines: int = LINES) -> bool:
        """Whether a line is to be written; else ``leave_out`` has to be told of it."""
        kind = self._kinds.get(name)
        if kind.until_s <= self._clock() if kind else len(self._kinds) >= _KINDS:
            self.end_intervals()
        with self._lock:
            kind = self._kind(name)
            kind.seen += 1
            return kind.seen <= lines

    def leave_out(self, name: Hashable, line: Line) -> None:
        """Note a line that was not let through."""
        with self._lock:
            kind = self._kind(name)
            kind.left_out += 1
            kind.last = line
            if self._timer is None:
                self._start_timer(kind.until_s)

    def end_intervals(self, *, all_of_them: bool = False) -> None:
        """Write what intervals have left out that are over, or all."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            over = []
            for name, kind in list(self._kinds.items()):
                if all_of_them or kind.until_s <= self._clock():
                    over.append(kind)
                    self._kinds.pop(name, None)
                elif kind.left_out and self._timer is None:
                    self._start_timer(kind.until_s)  # In the order in which they began.
        # Not under the lock: a writer may log, or wait for somebody who does.
        for kind in over:
            if kind.left_out:
                self._write({**kind.last, "left_out": kind.left_out - 1})

    def _kind(self, name: Hashable) -> _Kind:
        if name not in self._kinds and len(self._kinds) >= _KINDS:
            name = _OTHERS
        return self._kinds.setdefault(name, _Kind(self._clock() + INTERVAL_S))

    def _start_timer(self, at_s: float) -> None:
        self._timer = threading.Timer(max(0.0, at_s - self._clock()), self.end_intervals)
        self._timer.daemon = True
        self._timer.start()
