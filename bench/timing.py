"""Takes turns between what is compared, so that a noisy machine disturbs all alike."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

_LEAST_ROUNDS = 3

Action = Callable[[], object]

_BLOCKS = 6  # The spread of a ratio is that of this many parts of a series.


def timed(action: Action) -> float:
    """Return how many seconds ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turns(
    actions: Mapping[str, Action], rounds: int, warm_up: int = 0
) -> dict[str, list[float]]:
    """Time every action once a round, in a new order each time.

    A fixed order would let one action always find the caches that the same other left.
    """
    return collect({n: lambda a=a: timed(a) for n, a in actions.items()}, rounds, warm_up)  # type: ignore[misc]


def collect(
    measures: Mapping[str, Callable[[], float]],
    rounds: int,
    warm_up: int = 0,
    budget_s: float = math.inf,
) -> dict[str, list[float]]:
    """Like `in_turns`, for what answers its own figure.

    Past ``budget_s`` seconds it leaves the rest of the rounds out, but for the least that
    a median can be taken of.
    """
    began = time.monotonic()
    order = list(measures)
    series: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(-warm_up, rounds):
        if turn >= _LEAST_ROUNDS and time.monotonic() - began > budget_s:
            break
        random.shuffle(order)
        for name in order:
            figure = measures[name]()
            if turn >= 0:
                series[name].append(figure)
    return series


def ratio(ours: Sequence[float], yardstick: Sequence[float]) -> float:
    """Return the ratio of the medians."""
    return statistics.median(ours) / statistics.median(yardstick)


def spread(ours: Sequence[float], yardstick: Sequence[float]) -> tuple[float, float]:
    """Return the least and the greatest ratio among consecutive parts of both series."""
    size = max(1, min(len(ours), len(yardstick)) // _BLOCKS)
    starts = range(0, min(len(ours), len(yardstick)) - size + 1, size)
    ratios = [ratio(ours[at : at + size], yardstick[at : at + size]) for at in starts]
    return min(ratios), max(ratios)


def percentile(series: Sequence[float], percent: int) -> float:
    """Return a percentile by nearest rank."""
    return sorted(series)[-(-percent * len(series) // 100) - 1]
