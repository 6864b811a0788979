"""Other clients of the same Redis, while 75 MB artifacts are written and read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import redis

from bench.hits import hold
from bench.lab import ROOT, BenchError
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import percentile
from bench.valkey import Valkey, start_valkey

_GROUP = "another client's GET of 100 bytes while 75 MB artifacts are written and read"
NEIGHBOURS_GOAL = 1.5
_TURNS = 4
_PAUSE_S = 0.001
_ENDING_S = 60.0


def beside_large_values(given: Setting) -> Iterator[Row]:
    """Beside the daemon's store, and beside values that we do not write; in turns, and idle.

    The yardstick is redis-py alone that SETs the same 75 MB as they are and reads them in ranges
    as large as the store's. It spends no time on packing, signatures and digests of frames, so it
    asks Redis for more bytes a second than the store does, and waits for it less; each goes as
    fast as it can. Beside it: the same bytes read by one GET, and nothing at all.
    """
    file = hold(given, given.modules.medium).file
    waits: dict[str, list[list[float]]] = defaultdict(list)
    large: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        valkey = start_valkey(stack, given.folder)
        client = valkey.client(stack)
        client.set("small", bytes(100))
        for _ in range(given.rounds(_TURNS)):
            waits["idle"].append(_gets(client, given.seconds(2.0)))
            for how in ("store", "ranges", "whole"):
                with ExitStack() as turn:
                    process = turn.enter_context(_large_values(valkey, how, file))
                    waits[how].append(_gets(client, given.seconds(4.0)))
                    for what, seconds in _end(process).items():
                        large[f"{how} {what}"] += seconds
                client.delete("plain")
    plain = "the same beside plain values read in ranges"
    yield _row("p50", waits, "store", "ranges", plain, 50)
    yield _row("p99", waits, "store", "ranges", plain, 99, NEIGHBOURS_GOAL)
    yield _row("longest", waits, "store", "ranges", plain, 100)
    yield _row("p99", waits, "store", "whole", "the same beside plain values read whole", 99)
    yield _row("p99", waits, "store", "idle", "the same, idle", 99)
    for what, against in (("write", "a plain SET"), ("read", "a plain GET")):
        yield compare(
            "a 75 MB artifact",
            f"{what} by the daemon's store",
            large[f"store {what}"],
            against,
            large[f"whole {what}"],
        )


def _gets(client: redis.Redis, seconds: float) -> list[float]:
    waits = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        client.get("small")
        waits.append(time.perf_counter() - began)
        time.sleep(_PAUSE_S)
    return waits


def _large_values(valkey: Valkey, how: str, file: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.large_values", str(valkey.socket), how, str(file)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    if process.stdout.readline() != "begun\n":
        process.kill()
        process.wait()
        raise BenchError("the writer of large values did not start")
    return process


def _end(process: subprocess.Popen[str]) -> dict[str, list[float]]:
    output, _ = process.communicate(timeout=_ENDING_S)
    series: dict[str, list[float]] = json.loads(output)
    return series


def _row(
    what: str,
    waits: dict[str, list[list[float]]],
    ours: str,
    other: str,
    against: str,
    percent: int,
    goal: float | None = None,
) -> Row:
    mine, theirs = (
        percentile([wait for turn in waits[name] for wait in turn], percent)
        for name in (ours, other)
    )
    ratios = [
        percentile(one, percent) / percentile(two, percent)
        for one, two in zip(waits[ours], waits[other], strict=True)
    ]
    spread = (min(ratios), max(ratios))
    count = sum(map(len, waits[ours]))
    return Row(_GROUP, what, mine, against, theirs, mine / theirs, spread, count, goal)
