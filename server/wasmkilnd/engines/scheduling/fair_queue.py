"""The order of jobs: callers take turns, background work comes last, and the queue is bounded.

This is a data structure only: no clock, no event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from wasmkilnd.waiters import Waiter


@dataclass(slots=True, eq=False)
class Entry:
    """A job that waits. It stands in the line of each caller that waits for it."""

    waiters: set[Waiter]
    size_bytes: int = 0
    cost_s: float = 0.0
    """How many seconds it is expected to take."""
    second: bool = False
    """Whether it is a second opinion, which other jobs pass while enough of them run."""


@dataclass(slots=True)
class _Line:
    """The jobs of one caller, in their order."""

    entries: dict[Entry, None] = field(default_factory=dict)  # in order
    cost_s: float = 0.0


class FairQueue:
    """One line of entries per caller; lines take turns, and each is first come, first served.

    Lines of background work move only while no other line has entries, and the daemon's own only
    while no caller's line has. When the queue is full,
    the caller that holds most of it makes room for those that hold less: a caller that floods
    the queue fills what the others leave free, and keeps no other caller out.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._entries: dict[Entry, None] = {}
        self._again: dict[Entry, None] = {}
        self._lines: dict[Waiter, _Line] = {}  # in the order of their turns

    def __len__(self) -> int:
        return len(self._entries) + len(self._again)

    @property
    def background(self) -> int:
        """How many entries only warm the cache."""
        return sum(all(waiter.background for waiter in entry.waiters) for entry in self._entries)

    @property
    def callers(self) -> int:
        """How many callers have a line."""
        return len({waiter.caller for waiter in self._lines})

    def add(self, entry: Entry, length: int, limit_bytes: int) -> list[Entry]:
        """Add ``entry``; return the entries that made room for it, or itself if there is no room.

        There is room for ``length`` entries and ``limit_bytes``, or for one entry of any size.
        """
        self._entries[entry] = None
        self.size_bytes += entry.size_bytes
        self._join_lines(entry, entry.waiters)
        gone: list[Entry] = []
        while True:
            too_long = len(self._entries) > length
            if not too_long and (self.size_bytes <= limit_bytes or len(self._entries) == 1):
                return gone
            gone.append(self._victim(entry, by_bytes=not too_long))
            self.discard(gone[-1])
            if gone[-1] is entry:
                return gone

    def add_again(self, entry: Entry) -> None:
        """Make an entry that was popped before the next one, even if the queue is full."""
        self._again[entry] = None

    def move(self, entry: Entry, waiters: set[Waiter]) -> None:
        """Move ``entry`` to other lines, to the end of those in which it did not stand."""
        if entry in self._entries and waiters != entry.waiters:
            self._leave_lines(entry, entry.waiters - waiters)
            self._join_lines(entry, waiters - entry.waiters)
            entry.waiters = waiters

    def pop(self, *, second: bool = True) -> Entry | None:
        """Return the next entry, None when nothing waits.

        Without ``second``, pass over second opinions, which keep their places.
        """
        entry = next(iter(self._again), None)
        if entry is None:
            waiter, entry = next(self._by_turn(second), (None, None))
            if waiter is None or entry is None:
                return None
            line = self._lines.pop(waiter)
            self._lines[waiter] = line  # Its next turn comes after all other lines.
        self.discard(entry)
        return entry

    def discard(self, entry: Entry) -> None:
        """Remove ``entry``, if it waits."""
        self._again.pop(entry, None)
        if entry in self._entries:
            del self._entries[entry]
            self.size_bytes -= entry.size_bytes
            self._leave_lines(entry, entry.waiters)

    def drain(self) -> Iterator[Entry]:
        """Remove and yield all entries, in the order of their turns."""
        while (entry := self.pop()) is not None:
            yield entry

    def ahead_s(
        self, waiters: Iterable[Waiter], entry: Entry | None = None, *, second: bool = True
    ) -> float:
        """Return the cost of the entries that go before one of ``waiters``.

        That is ``entry``, or without it an entry that is added now; without ``second``, one that
        passes second opinions. This is an estimate: of each other line, as many entries count as
        stand before it in its own line, at the average cost of that line.
        """
        return sum(each.cost_s for each in self._again) + min(
            (self._ahead_of(waiter, entry, second) for waiter in waiters), default=0.0
        )

    def _ahead_of(self, waiter: Waiter, entry: Entry | None, second: bool) -> float:
        before, cost_s = 0, 0.0
        own = self._lines.get(waiter)
        for other in own.entries if own else ():
            if other is entry:
                break
            if second or not other.second:
                before, cost_s = before + 1, cost_s + other.cost_s
        for theirs, line in self._lines.items():
            if theirs == waiter or theirs.rank > waiter.rank:
                continue
            turns = len(line.entries)
            if theirs.rank == waiter.rank:
                turns = min(turns, before + 1)
            cost_s += turns * line.cost_s / len(line.entries)
        return cost_s

    def _by_turn(self, second: bool) -> Iterator[tuple[Waiter, Entry]]:
        for rank in sorted({waiter.rank for waiter in self._lines}):
            for waiter, line in self._lines.items():
                if waiter.rank == rank:
                    entries = (each for each in line.entries if second or not each.second)
                    yield from ((waiter, entry) for entry in islice(entries, 1))

    def _join_lines(self, entry: Entry, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            line = self._lines.setdefault(waiter, _Line())
            line.entries[entry] = None
            line.cost_s += entry.cost_s

    def _leave_lines(self, entry: Entry, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            line = self._lines[waiter]
            del line.entries[entry]
            line.cost_s -= entry.cost_s
            if not line.entries:
                del self._lines[waiter]

    def _victim(self, newcomer: Entry, *, by_bytes: bool) -> Entry:
        """Return the entry to remove: the last of the longest line, or ``newcomer``.

        The newcomer has to go if its own line is as long. Background work goes before any other.
        """

        def weight(waiter: Waiter) -> tuple[int, int]:
            entries = self._lines[waiter].entries
            return waiter.rank, sum(e.size_bytes for e in entries) if by_bytes else len(entries)

        longest = max(self._lines, key=weight)
        if weight(longest) <= max(map(weight, newcomer.waiters)):
            return newcomer
        entries = list(self._lines[longest].entries)
        # An entry that other callers wait for too goes only if there is no other.
        alone = (entry for entry in reversed(entries) if len(entry.waiters) == 1)
        return next(alone, entries[-1])
