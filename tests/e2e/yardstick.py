"""How slow this processor is now, so that bounds of CPU time mean the same work everywhere."""

from __future__ import annotations

import time

# The CPU time of ``_work`` on the machine on which the bounds were found.
_REFERENCE_S = 0.0030
_STEPS = 20_000
# A processor that is slower still would make any bound meaningless.
_MOST = 8.0


def slowness() -> float:
    """Return how many times more CPU the same work takes now than on the reference machine.

    Never less than 1. Two tasks on one core, a low clock and cold caches all count. Takes some
    milliseconds.
    """
    began = time.thread_time()
    _work()
    return min(_MOST, max(1.0, (time.thread_time() - began) / _REFERENCE_S))


def _work() -> None:
    number = 0
    seen: dict[int, int] = {}
    for step in range(_STEPS):
        number = number * 31 + step & 0xFFFF
        seen[number & 255] = step
