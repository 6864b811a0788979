"""Who wants a piece of work: in whose turn it is done, how urgent it is, and whether at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Waiter:
    """One caller's interest in a piece of work."""

    caller: str = ""
    """Who takes turns with others; equal texts share one turn."""
    background: bool = False
    """Nobody waits for the result: whoever does goes first."""


class Waiters:
    """The wishes that one piece of work has now. For one event loop.

    Many callers may wait for the same work. When the last of them leaves, the work
    is dropped, unless it is to be ``kept``.
    """

    def __init__(self, drop: Callable[[], None] | None = None) -> None:
        """``drop`` ends the work; None for work that ends with its only caller."""
        self.kept = False
        """Whether the work goes on when nobody wants it any more."""
        self._drop = drop
        self._waiting: dict[Waiter, int] = {}
        self._watchers: dict[Any, Callable[[Any], None]] = {}

    @classmethod
    def of(cls, waiter: Waiter) -> Waiters:
        """Return the waiters of one caller, who takes the work along when it leaves."""
        waiters = cls()
        waiters.join(waiter)
        return waiters

    @property
    def wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def effective(self) -> set[Waiter]:
        """Return the wishes that count: as long as a caller waits, none in the background do."""
        urgent = {waiter for waiter in self._waiting if not waiter.background}
        return urgent or set(self._waiting)

    def join(self, waiter: Waiter) -> None:
        """Note that one more caller waits."""
        self._waiting[waiter] = self._waiting.get(waiter, 0) + 1
        self._tell()

    def leave(self, waiter: Waiter) -> None:
        """Note that a caller waits no more; the last one's leaving drops what is not kept."""
        self._waiting[waiter] -= 1
        if not self._waiting[waiter]:
            del self._waiting[waiter]
        self._tell()
        if not self.kept:
            self.release()

    def follow(self, other: Waiters) -> Callable[[], None]:
        """Have the wishes of ``other`` that count, whenever they change; return what ends that.

        For work that is done on the way to what ``other`` is about.
        """
        followed: set[Waiter] = set()

        def catch_up(wishes: set[Waiter]) -> None:
            nonlocal followed
            before, followed = followed, wishes
            # Who comes joins first: with nobody left in between, the work would be dropped.
            for waiter in wishes - before:
                self.join(waiter)
            for waiter in before - wishes:
                self.leave(waiter)

        def changed(_: object) -> None:
            catch_up(other.effective())

        seat = object()

        def end() -> None:
            other.unwatch(seat)
            catch_up(set())

        other.watch(seat, changed)
        changed(seat)
        return end

    def release(self) -> None:
        """Keep the work no more: it is dropped at once if nobody waits for it."""
        self.kept = False
        if not self._waiting:
            self.drop()

    def drop(self) -> None:
        """End the work."""
        if self._drop:
            self._drop()

    def watch(self, watcher: W, tell: Callable[[W], None]) -> None:
        """Call ``tell`` with ``watcher`` whenever the wishes change, until ``unwatch``.

        Only this waiters keeps the two together: a watcher that kept its own callback would
        wait for the garbage collector.
        """
        self._watchers[watcher] = tell

    def unwatch(self, watcher: object) -> None:
        """Stop telling ``watcher``; again does nothing."""
        self._watchers.pop(watcher, None)

    def _tell(self) -> None:
        for watcher, tell in list(self._watchers.items()):
            tell(watcher)
