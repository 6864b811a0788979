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
_TURNS = 4
_PAUSE_S = 0.001
_ENDING_S = 60.0


def beside_large_values(given: Setting) -> Iterator[Row]:
    """Through the tier, in pieces, and as single values; in turns, and idle between."""
    file = hold(given, given.modules.medium).file
    waits: dict[str, list[list[float]]] = defaultdict(list)
    large: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        valkey = start_valkey(stack, given.folder)
        client = valkey.client(stack)
        client.set("small", bytes(100))
        for _ in range(given.rounds(_TURNS)):
            waits["idle"].append(_gets(client, given.seconds(2.0)))
            for how in ("split", "whole"):
                with ExitStack() as turn:
                    process = turn.enter_context(_large_values(valkey, how, file))
                    waits[how].append(_gets(client, given.seconds(4.0)))
                    for what, seconds in _end(process).items():
                        large[f"{how} {what}"] += seconds
                client.delete("whole")
    for name, percent in (("p50", 50), ("p99", 99), ("longest", 100)):
        yield _row(name, waits, "split", "whole", "the same as single values", percent)
    yield _row("p99", waits, "split", "idle", "the same, idle", 99)
    for what in ("write", "read"):
        yield compare(
            "a 75 MB artifact",
            f"{what} through the tier, in pieces",
            large[f"split {what}"],
            "as one value",
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
    return Row(
        _GROUP, what, mine, against, theirs, mine / theirs, spread, sum(map(len, waits[ours]))
    )
