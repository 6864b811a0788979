"""Who waits for a piece of work: whose turn it takes, how urgent it is, and whether to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from wasmkilnd.account import FREE, Bill

W = TypeVar("W")


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


class Waiters:
    """All who wait for one piece of work. For one event loop.

    Many callers may wait for the same work. When the last of them leaves, the work is
    dropped, unless it is to be ``kept``.
    """

    def __init__(self, drop: Callable[[], None] | None = None, bill: Bill = FREE) -> None:
        """``drop`` ends the work; None for work that ends with its only caller."""
        self.bill = bill
        """Who pays for the work: the one that started it."""
        self.kept = False
        """Whether the work goes on after the last waiter has left."""
        self._drop = drop
        self._waiting: dict[Waiter, int] = {}
        self._watchers: dict[Any, Callable[[Any], None]] = {}

    @classmethod
    def of(cls, waiter: Waiter, bill: Bill = FREE) -> Waiters:
        """Return the waiters of work that only ``waiter`` waits for, and that ends with it."""
        waiters = cls(bill=bill)
        waiters.join(waiter)
        return waiters

    @property
    def wanted(self) -> bool:
        """Whether any caller waits."""
        return bool(self._waiting)

    def effective(self) -> set[Waiter]:
        """Return the waiters that count: those of the lowest rank."""
        first = min((waiter.rank for waiter in self._waiting), default=0)
        return {waiter for waiter in self._waiting if waiter.rank == first}

    def join(self, waiter: Waiter) -> None:
        """Add a caller that waits."""
        self._waiting[waiter] = self._waiting.get(waiter, 0) + 1
        self._tell()

    def leave(self, waiter: Waiter) -> None:
        """Remove a caller; drop the work if it was the last and the work is not kept."""
        self._waiting[waiter] -= 1
        if not self._waiting[waiter]:
            del self._waiting[waiter]
        self._tell()
        if not self.kept:
            self.release()

    def follow(self, other: Waiters) -> Callable[[], None]:
        """Join and leave as the effective waiters of ``other`` do; return what ends that.

        For work that is a step on the way to the work of ``other``.
        """
        followed: set[Waiter] = set()

        def catch_up(waiters: set[Waiter]) -> None:
            nonlocal followed
            before, followed = followed, waiters
            # Join before leaving: with no waiter in between, the work would be dropped.
            for waiter in waiters - before:
                self.join(waiter)
            for waiter in before - waiters:
                self.leave(waiter)

        def changed(_: object) -> None:
            catch_up(other.effective())

        watcher = object()

        def end() -> None:
            other.unwatch(watcher)
            catch_up(set())

        other.watch(watcher, changed)
        changed(watcher)
        return end

    def release(self) -> None:
        """Stop keeping the work: drop it now if no caller waits for it."""
        self.kept = False
        if not self._waiting:
            self.drop()

    def drop(self) -> None:
        """End the work."""
        if self._drop:
            self._drop()

    def watch(self, watcher: W, tell: Callable[[W], None]) -> None:
        """Call ``tell`` with ``watcher`` whenever the waiters change, until ``unwatch``.

        The two are kept together here only: a watcher that held its own callback would be
        part of a cycle, and stay until the garbage collector comes.
        """
        self._watchers[watcher] = tell

    def unwatch(self, watcher: object) -> None:
        """Stop telling ``watcher``; do nothing if it is not told."""
        self._watchers.pop(watcher, None)

    def _tell(self) -> None:
        for watcher, tell in list(self._watchers.items()):
            tell(watcher)
