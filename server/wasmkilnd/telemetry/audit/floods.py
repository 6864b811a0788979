"""How many failures of one kind get a line of the audit: strangers can cause any number."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wasmkilnd.ports import AuditEvent

INTERVAL_S = 10.0
LINES = 100
"""Lines of one kind in an interval."""
LINES_OF_A_FLOOD = 10
"""The same in an interval after one with more than were written."""
KINDS = 1024
"""How many kinds are told apart; the identities beyond share one."""
OTHERS = "(others)"


@dataclass(frozen=True, slots=True)
class Kind:
    """What counts together. All but the identity come from short lists in the code."""

    event: AuditEvent
    code: str
    reason: str
    identity: str


@dataclass(slots=True)
class _Interval:
    until_s: float
    lines: int
    seen: int = 0


@dataclass(slots=True)
class FailureLimit:
    """Allows so many lines of each kind in an interval, and counts the others."""

    clock: Callable[[], float] = time.monotonic
    _intervals: dict[Kind, _Interval] = field(default_factory=dict)

    def allows(self, kind: Kind) -> bool:
        """Count a line; return whether to write it. Call ``ended`` before."""
        if kind not in self._intervals and len(self._intervals) >= KINDS:
            kind = Kind(kind.event, kind.code, kind.reason, OTHERS)
        interval = self._intervals.get(kind)
        if interval is None:
            interval = self._intervals[kind] = _Interval(self.clock() + INTERVAL_S, LINES)
        interval.seen += 1
        return interval.seen <= interval.lines

    def ended(self, *, all_kinds: bool = False) -> list[tuple[Kind, int]]:
        """End the intervals that are over; return what was left out of each."""
        now_s = self.clock()
        left_out = []
        # In the order of their ends, since all are equally long. Those that begin anew here are
        # not over.
        while self._intervals:
            kind, interval = next(iter(self._intervals.items()))
            if interval.until_s > now_s and not all_kinds:
                break
            del self._intervals[kind]
            more = interval.seen - interval.lines
            if more > 0:
                left_out.append((kind, more))
                if not all_kinds:
                    self._intervals[kind] = _Interval(now_s + INTERVAL_S, LINES_OF_A_FLOOD)
        return left_out
