"""A clock for tests."""

from __future__ import annotations


class Clock:
    """Time that passes only where a test says so, or something sleeps by it."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
