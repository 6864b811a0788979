"""Artifacts that answers on their way keep in memory, whatever the cache forgets meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Pins:
    """Counts each artifact once, however many answers send it."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self.total_bytes = 0
        self._limit_bytes = limit_bytes
        self._answers: dict[int, int] = {}

    def fits(self, frames: Sequence[bytes]) -> bool:
        """Answer whether there is room for one more; one alone always fits."""
        if id(frames) in self._answers or not self._answers:
            return True
        return self.total_bytes + _size(frames) <= self._limit_bytes()

    def add(self, frames: Sequence[bytes]) -> None:
        """Note that an answer begins. Whoever calls holds ``frames`` until ``remove``."""
        answers = self._answers.get(id(frames), 0)
        self._answers[id(frames)] = answers + 1
        if not answers:
            self.total_bytes += _size(frames)

    def remove(self, frames: Sequence[bytes]) -> None:
        """Note that an answer has ended."""
        self._answers[id(frames)] -= 1
        if not self._answers[id(frames)]:
            del self._answers[id(frames)]
            self.total_bytes -= _size(frames)


def _size(frames: Sequence[bytes]) -> int:
    return sum(map(len, frames))
