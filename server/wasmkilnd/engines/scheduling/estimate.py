"""How long a job will take, learnt from those before it."""

from __future__ import annotations

# What real modules took in either engine: about 0.7 s for each MB (docs/performance.md).
_FIRST_GUESS_S = 0.02
_FIRST_GUESS_S_PER_BYTE = 0.7e-6
# How much the newest job counts.
_WEIGHT = 1 / 4


class Estimate:
    """Expects of a job what jobs of the same kind and about the same size took lately.

    Sizes are told apart by powers of 4: within one, times are alike enough, and a few
    jobs are enough to know all of them. Until then the nearest one is taken: in proportion
    for less, and with what is usual added for more. Much of what a small job takes has
    nothing to do with its size, and a small module may be made to take long: in proportion,
    one that took seconds would have any larger one expected to take hours.
    """

    def __init__(self) -> None:
        self._recent_s: dict[tuple[str, int], float] = {}

    def expected_s(self, kind: str, size_bytes: int) -> float:
        """Return the seconds that a job is expected to take."""
        wanted = _class_of(size_bytes)
        known = [size for of_kind, size in self._recent_s if of_kind == kind]
        if not known:
            return _guess_s(size_bytes)
        nearest = min(known, key=lambda size: abs(size - wanted))
        recent_s = self._recent_s[kind, nearest]
        if nearest > wanted:
            return recent_s / 4.0 ** (nearest - wanted)
        more_bytes = size_bytes * (1 - 0.25 ** (wanted - nearest))
        return recent_s + _FIRST_GUESS_S_PER_BYTE * more_bytes

    def took(self, kind: str, size_bytes: int, seconds: float) -> None:
        """Learn from a job that has ended."""
        like = kind, _class_of(size_bytes)
        before = self._recent_s.get(like, seconds)
        self._recent_s[like] = before + (seconds - before) * _WEIGHT


def _guess_s(size_bytes: int) -> float:
    return _FIRST_GUESS_S + _FIRST_GUESS_S_PER_BYTE * size_bytes


def _class_of(size_bytes: int) -> int:
    return size_bytes.bit_length() // 2
