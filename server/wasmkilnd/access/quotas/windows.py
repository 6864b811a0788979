"""Amounts that time takes back: a sum over a sliding time, and a bucket of tokens."""

from __future__ import annotations

import math
from collections import deque

_SLOTS = 60
_ROUNDING = 1e-9


class SlidingSum:
    """The sum of what was added within the last ``window_s`` seconds.

    Time is cut into 60 slots, so an amount is forgotten up to a 60th of the window late, and
    memory is bounded. One thread adds; reading changes nothing, and any thread may.
    """

    __slots__ = ("_added", "_slot_s", "_sum")

    def __init__(self, window_s: float) -> None:
        self._slot_s = window_s / _SLOTS
        self._added: deque[tuple[int, float]] = deque()  # number of the slot, amount in it
        self._sum = 0.0  # of all that were added and not forgotten

    def add(self, amount: float, now_s: float) -> None:
        """Add ``amount``."""
        while self._added and self._ends_s(self._added[0][0]) <= now_s:
            self._sum -= self._added.popleft()[1]
        if not self._added:
            self._sum = 0.0  # Adding and taking away numbers with fractions leaves a rest.
        self._sum += amount
        slot = int(now_s / self._slot_s)
        if self._added and self._added[-1][0] == slot:
            amount += self._added.pop()[1]
        self._added.append((slot, amount))

    def total(self, now_s: float) -> float:
        """Return the sum."""
        left = self._sum
        for slot, amount in tuple(self._added):
            if self._ends_s(slot) > now_s:
                return left
            left -= amount
        return 0.0

    def seconds_until_below(self, limit: float, now_s: float) -> float:
        """Return how long it takes until the sum is below ``limit``, if nothing is added."""
        left_s = 0.0
        added = self._in_window(now_s)
        for index, (slot, _) in enumerate(added):
            if math.fsum(amount for _, amount in added[index:]) < limit:
                break
            left_s = self._ends_s(slot) - now_s
        return left_s

    def _in_window(self, now_s: float) -> list[tuple[int, float]]:
        return [each for each in tuple(self._added) if self._ends_s(each[0]) > now_s]

    def _ends_s(self, slot: int) -> float:
        return (slot + 1 + _SLOTS) * self._slot_s


class TokenBucket:
    """Tokens that come back evenly: up to ``per_minute`` at once, and as many in each minute."""

    __slots__ = ("_spent", "_when_s")

    def __init__(self) -> None:
        self._spent = 0.0
        self._when_s = 0.0

    def spent(self, per_minute: float, now_s: float) -> float:
        """Return how many tokens have not come back yet."""
        back = max(0.0, now_s - self._when_s) * per_minute / 60
        return max(0.0, self._spent - back)

    def take(self, per_minute: float, now_s: float) -> None:
        """Take a token, even if none is left."""
        self._spent, self._when_s = self.spent(per_minute, now_s) + 1, now_s

    def give_back(self) -> None:
        """Give back a token that was taken and not used."""
        self._spent = max(0.0, self._spent - 1)

    def seconds_until_one(self, per_minute: float, now_s: float) -> float:
        """Return how long it takes until there is a token; 0 if there is one."""
        # A bucket smaller than one token would never have one.
        missing = self.spent(per_minute, now_s) + 1 - max(1.0, per_minute)
        return missing * 60 / per_minute if missing > _ROUNDING else 0.0
