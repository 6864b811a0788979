"""What a caller can tell from the time of a refusal: nothing about another tenant's caches.

Calls by digest, in random order: for modules that another tenant has in every tier, and for
modules that nobody has. If no time depends on which, the order of the times is as random as the
order of the calls, and the figures have a known distribution, however busy the machine is.
"""

from __future__ import annotations

import bisect
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from wasmkiln import Client, ModuleNotLoaded

from tests.e2e import wasm
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.tenancy import house
from tests.servers.redis_server import binary_of, redis_server
from tests.sizes import size

CALLS = size(2000, 800)
MODULES = 20
# Of 1,000 and 1,000 times, or of 400 and 400, chance alone exceeds each of these once in a million
# tests or so: five standard deviations, and the limit of Kolmogorov and Smirnov for 10^-6.
MOST_RANK_BIAS = size(0.065, 0.102)
MOST_DISTANCE = size(0.12, 0.19)


def rank_bias(some: Sequence[float], others: Sequence[float]) -> float:
    """Return how far from 1/2 the chance is that one of ``some`` is less than one of ``others``.

    That is the U of Mann and Whitney, divided by the number of pairs.
    """
    line = sorted(others)
    below = sum(bisect.bisect_left(line, each) + bisect.bisect_right(line, each) for each in some)
    return abs(below / (2 * len(some) * len(others)) - 0.5)


def distance(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the largest difference of the two distributions (Kolmogorov and Smirnov)."""
    one, other = sorted(some), sorted(others)
    return max(
        abs(
            bisect.bisect_right(one, each) / len(one)
            - bisect.bisect_right(other, each) / len(other)
        )
        for each in (*one, *other)
    )


def seconds_of(client: Client, sha256: str, *, refused: bool = True) -> float:
    began_s, was_refused = time.perf_counter(), False
    try:
        client.compile(sha256)
    except ModuleNotLoaded:
        was_refused = True
    took_s = time.perf_counter() - began_s
    assert was_refused == refused
    return took_s


def test_the_time_of_a_refusal_says_nothing_of_other_tenants(
    tmp_path: Path, engines: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = [wasm.constant(number) for number in range(MODULES)]
    nobodys = [wasm.digest(wasm.constant(1000 + number)) for number in range(MODULES)]
    with (
        redis_server(binary_of("valkey"), tmp_path / "server") as server,
        house(tmp_path / "state", REDIS_URL=server.url) as tenants,
    ):
        victim, attacker = tenants.client("a"), tenants.client("b", max_attempts=1)
        for module in theirs:
            victim.compile(module)
        eventually(lambda: victim.stats().pending_writes == 0, "all is in Redis")
        asked = [(True, wasm.digest(module)) for module in theirs]
        asked = (asked + [(False, sha256) for sha256 in nobodys]) * (CALLS // (2 * MODULES))
        random.Random(20261127).shuffle(asked)
        took: dict[bool, list[float]] = {True: [], False: []}
        for is_theirs, sha256 in asked:
            took[is_theirs].append(seconds_of(attacker, sha256))
        # The same figures for what the time may tell: who has an artifact of megabytes has to read
        # it, and who has not is refused.
        large = victim.compile(wasm.many_functions(20_000)).header.module_sha256
        own = [seconds_of(victim, large, refused=False) for _ in range(100)]
        missed = [seconds_of(victim, sha256) for sha256 in nobodys * 5]
    bias, far = rank_bias(took[True], took[False]), distance(took[True], took[False])
    with capsys.disabled():
        print(
            f"\nrank bias {bias:.4f}, distance {far:.4f}; own modules {rank_bias(own, missed):.4f}"
        )
    assert len(took[True]) == len(took[False]) == CALLS // 2
    assert bias < MOST_RANK_BIAS
    assert far < MOST_DISTANCE
    # The test would see a difference where there is one.
    assert rank_bias(own, missed) > MOST_RANK_BIAS
