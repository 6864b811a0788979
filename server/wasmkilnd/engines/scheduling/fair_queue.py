"""Who is next: turns between callers, callers before background work, bounded both ways.

A data structure and nothing else: no clock, no event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from wasmkilnd.waiters import Waiter


@dataclass(slots=True, eq=False)
class Entry:
    """A piece of work that waits. It stands in the line of every caller that wants it."""

    waiters: set[Waiter]
    size_bytes: int = 0
    cost_s: float = 0.0
    """How long it is expected to take."""
    second: bool = False
    """It is a second opinion, which others pass while enough of them run."""


@dataclass(slots=True)
class _Line:
    """What one caller waits for, in its order."""

    entries: dict[Entry, None] = field(default_factory=dict)  # in order, and quick to leave
    cost_s: float = 0.0


class FairQueue:
    """Lines of entries, one per caller, that take turns; first come, first served within each.

    Lines of background work move only while no other line has entries. When the queue
    is full, whoever holds most of it makes room for those who hold less: a caller that
    floods it fills what others leave free, and keeps nobody out.
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
        """How many entries nobody waits for."""
        return sum(all(waiter.background for waiter in entry.waiters) for entry in self._entries)

    @property
    def callers(self) -> int:
        """How many callers have a line."""
        return len({waiter.caller for waiter in self._lines})

    def add(self, entry: Entry, length: int, limit_bytes: int) -> list[Entry]:
        """Let ``entry`` wait; return those that have to go for it, or itself for want of room.

        There is room for ``length`` entries, and ``limit_bytes`` unless it is one alone.
        """
        self._entries[entry] = None
        self.size_bytes += entry.size_bytes
        self._stand(entry, entry.waiters)
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
        """Let an entry that was popped before be the next, whatever the queue holds."""
        self._again[entry] = None

    def move(self, entry: Entry, waiters: set[Waiter]) -> None:
        """Have ``entry`` stand in other lines, at the end of those that it did not stand in."""
        if entry in self._entries and waiters != entry.waiters:
            self._leave(entry, entry.waiters - waiters)
            self._stand(entry, waiters - entry.waiters)
            entry.waiters = waiters

    def pop(self, *, second: bool = True) -> Entry | None:
        """Return the next entry, None when nothing waits.

        Without ``second``, second opinions are passed over and stay where they are.
        """
        entry = next(iter(self._again), None)
        if entry is None:
            waiter, entry = next(self._by_turn(second), (None, None))
            if waiter is None or entry is None:
                return None
            line = self._lines.pop(waiter)
            self._lines[waiter] = line  # Its next turn comes after everybody else's.
        self.discard(entry)
        return entry

    def discard(self, entry: Entry) -> None:
        """Let ``entry`` wait no more, if it does."""
        self._again.pop(entry, None)
        if entry in self._entries:
            del self._entries[entry]
            self.size_bytes -= entry.size_bytes
            self._leave(entry, entry.waiters)

    def drain(self) -> Iterator[Entry]:
        """Take out every entry, in the order of their turns."""
        while (entry := self.pop()) is not None:
            yield entry

    def ahead_s(
        self, waiters: Iterable[Waiter], entry: Entry | None = None, *, second: bool = True
    ) -> float:
        """Return the cost of what goes before an entry with these waiters.

        That is ``entry``, or else one that is added now; without ``second``, one that
        passes second opinions. Near enough rather than exact: of each other line as many
        entries count as go before in its own, at that line's average cost.
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
            if theirs == waiter or theirs.background > waiter.background:
                continue
            turns = len(line.entries)
            if theirs.background == waiter.background:
                turns = min(turns, before + 1)
            cost_s += turns * line.cost_s / len(line.entries)
        return cost_s

    def _by_turn(self, second: bool) -> Iterator[tuple[Waiter, Entry]]:
        for background in (False, True):
            for waiter, line in self._lines.items():
                if waiter.background is background:
                    entries = (each for each in line.entries if second or not each.second)
                    yield from ((waiter, entry) for entry in islice(entries, 1))

    def _stand(self, entry: Entry, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            line = self._lines.setdefault(waiter, _Line())
            line.entries[entry] = None
            line.cost_s += entry.cost_s

    def _leave(self, entry: Entry, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            line = self._lines[waiter]
            del line.entries[entry]
            line.cost_s -= entry.cost_s
            if not line.entries:
                del self._lines[waiter]

    def _victim(self, newcomer: Entry, *, by_bytes: bool) -> Entry:
        """Return who yields: the last of the longest line, or the newcomer of one as long.

        Background work yields before any other.
        """

        def weight(waiter: Waiter) -> tuple[bool, int]:
            entries = self._lines[waiter].entries
            return waiter.background, sum(e.size_bytes for e in entries) if by_bytes else len(
                entries
            )

        longest = max(self._lines, key=weight)
        if weight(longest) <= max(map(weight, newcomer.waiters)):
            return newcomer
        entries = list(self._lines[longest].entries)
        # One that others want too goes only where there is no other.
        alone = (entry for entry in reversed(entries) if len(entry.waiters) == 1)
        return next(alone, entries[-1])
