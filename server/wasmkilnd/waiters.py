"""Who waits for a piece of work: whose turn it takes, how urgent it is, and whether to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from wasmkilnd.account import FREE, Bill


@dataclass(frozen=True, slots=True)
class Waiter:
    """One caller's interest in a piece of work."""

    caller: str = ""
    """The name under which the caller takes turns; calls with the same name share one turn."""
    background: bool = False
    """Whether the caller only warms the cache: work that a caller waits for goes first."""
    last: bool = False
    """Whether it goes behind all background work too: the daemon's own compiles."""

    @property
    def rank(self) -> int:
        """Return its place: work of a lower rank goes first."""
        return 2 if self.last else int(self.background)


@dataclass(eq=False, slots=True)
class Waiters:
    """All who wait for one piece of work. For one event loop.

    Many callers may wait for the same work. When the last of them leaves, the work is dropped,
    unless it is ``kept``: a job that has begun is finished, and its artifact stored.
    """

    bill: Bill = FREE
    """Who pays for the work: the one that started it."""
    drop: Callable[[], None] = lambda: None
    """Ends the work."""
    kept: bool = False
    waiting: Counter[Waiter] = field(default_factory=Counter)
    """How many calls of each caller wait."""

    @classmethod
    def of(cls, waiter: Waiter, bill: Bill = FREE) -> Waiters:
        """Return the waiters of work that only ``waiter`` waits for, and that ends with it."""
        return cls(bill, waiting=Counter((waiter,)))

    def leave(self, waiter: Waiter) -> None:
        """Remove a call; drop the work if it was the last and the work is not kept."""
        self.waiting -= Counter((waiter,))
        if not (self.waiting or self.kept):
            self.drop()

    def release(self) -> None:
        """Stop keeping the work: drop it now if no caller waits for it."""
        self.kept = False
        if not self.waiting:
            self.drop()
