"""Fair shares of what there is at a time, so that no caller takes all of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable


class FairShare:
    """Shares a limit among callers: each may hold as much as is left free.

    One caller alone gets half of the limit, two get a third each, and there is always room
    for a new caller: dynamic queue length thresholds, as in switches with a shared memory
    (Choudhury and Hahne, 1998). A caller that holds nothing is forgotten.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        """``limit`` is read at each use; while more than it is held, no caller has room."""
        self._limit = limit
        self.total = 0
        self.held = defaultdict[str, int](int)

    @property
    def free(self) -> int:
        """How much is left; negative after the limit was lowered below the total."""
        return self._limit() - self.total

    def room(self, caller: str) -> int:
        """Return how much more ``caller`` may hold; negative if it holds too much."""
        return self._limit() - self.total - self.held.get(caller, 0)

    def fits(self, caller: str, amount: int) -> bool:
        """Return whether ``caller`` with ``amount`` more would hold no more than is left free."""
        return 2 * amount <= self.room(caller)

    def add(self, caller: str, amount: int) -> None:
        """Add ``amount`` to what ``caller`` holds; a negative amount gives back."""
        self.total += amount
        self.held[caller] += amount
        if not self.held[caller]:
            del self.held[caller]
