"""Expect how long a job takes, from the jobs before it, and how long another waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterable

# What real modules took in either engine: about 0.7 s for each MB
# (docs/explanation/performance.md).
_FIRST_GUESS_S = 0.02
_FIRST_GUESS_S_PER_BYTE = 0.7e-6
# How much the newest job counts.
_WEIGHT = 1 / 4


class Estimate:
    """Expects a job to take as long as recent jobs of the same kind and about the same size.

    Sizes are grouped by powers of 4: within a group times are similar, and a few jobs are enough
    to know all groups. For a group without a job, the nearest known group is used: in proportion
    for a smaller job; for a larger one, with the usual time for the additional bytes. Not in
    proportion upwards: a small module can be made to take seconds, and the daemon would then
    expect any larger one to take hours.
    """

    def __init__(self) -> None:
        self._recent_s: dict[tuple[str, int], float] = {}

    def expected_s(self, kind: str, size_bytes: int) -> float:
        """Return the seconds that a job is expected to take."""
        wanted = _group_of(size_bytes)
        known = [size for of_kind, size in self._recent_s if of_kind == kind]
        if not known:
            return _guess_s(size_bytes)
        nearest = min(known, key=lambda size: abs(size - wanted))
        recent_s = self._recent_s[kind, nearest]
        if nearest > wanted:
            return recent_s / 4.0 ** (nearest - wanted)
        more_bytes = size_bytes * (1 - 0.25 ** (wanted - nearest))
        return recent_s + _FIRST_GUESS_S_PER_BYTE * more_bytes

    def learn(self, kind: str, size_bytes: int, seconds: float) -> None:
        """Learn from a job that has ended."""
        group = kind, _group_of(size_bytes)
        before = self._recent_s.get(group, seconds)
        self._recent_s[group] = before + (seconds - before) * _WEIGHT


def wait_s(ahead_s: float, running: Iterable[tuple[float, float]]) -> float:
    """Return in how many seconds a worker is free for a job that waits.

    Jobs that need ``ahead_s`` go before it. Each job of ``running`` is given as the seconds that
    it is expected to take, and those that it has run.
    """
    # A job that is late by some time is expected to need as much time once more.
    free_s = sorted(abs(expected_s - ran_s) for expected_s, ran_s in running)
    # The first ``count`` workers share the jobs ahead, unless one more worker is free before.
    shares = (
        ((ahead_s + sum(free_s[:count])) / count, next_free_s)
        for count, next_free_s in enumerate([*free_s[1:], math.inf], 1)
    )
    return next(share_s for share_s, next_free_s in shares if share_s <= next_free_s)


def _guess_s(size_bytes: int) -> float:
    return _FIRST_GUESS_S + _FIRST_GUESS_S_PER_BYTE * size_bytes


def _group_of(size_bytes: int) -> int:
    return size_bytes.bit_length() // 2
