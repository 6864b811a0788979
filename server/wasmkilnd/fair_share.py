"""Who holds how much of what is limited for all."""

from __future__ import annotations

from collections.abc import Callable


class FairShare:
    """Shares a limit: each caller may hold as much as is left free.

    So one caller alone gets a half of it, two get a third each, and there is always
    room for one more who holds nothing: dynamic queue length thresholds, as in
    switches with a shared memory (Choudhury and Hahne, 1998). Callers that hold
    nothing are not remembered.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        """``limit`` is asked at each use; while more than it is held, nobody has room."""
        self._limit = limit
        self.total = 0
        self._held: dict[str, int] = {}

    @property
    def free(self) -> int:
        """How much is left, less than nothing if the limit has become smaller."""
        return self._limit() - self.total

    def held(self, caller: str) -> int:
        """Return what ``caller`` holds."""
        return self._held.get(caller, 0)

    def room(self, caller: str) -> int:
        """Return how much more ``caller`` could hold, less than nothing if it holds too much."""
        return self.free - self.held(caller)

    def fits(self, caller: str, amount: int) -> bool:
        """Tell whether ``caller`` with ``amount`` more would hold no more than is left free."""
        return 2 * amount <= self.room(caller)

    def add(self, caller: str, amount: int) -> None:
        """Note that ``caller`` holds ``amount`` more, or less."""
        self.total += amount
        held = self.held(caller) + amount
        if held:
            self._held[caller] = held
        else:
            self._held.pop(caller, None)

    def heaviest(self) -> str:
        """Return who holds most; an empty text if nobody holds anything."""
        return max(self._held, key=self.held, default="")
