"""Memory hits while every worker compiles, and what an engine in the daemon would have done."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench.engine_process import EngineProcess
from bench.hits import Held, hold
from bench.lab import ROOT, come_to_rest, end
from bench.raw import COMPILE, RawStream
from bench.results import Row
from bench.setting import Setting
from bench.timing import percentile, timed

GOALS = {"small": 3.0, "medium": 2.0}
"""Of p99."""

_GROUP = "memory hits while every worker compiles"
_TURNS = 3
_SETTLE_S = 1.0
"""The flood needs to upload its modules before its compiles begin."""


def under_load(given: Setting) -> Iterator[Row]:
    """Idle, loaded, idle, loaded …: the same calls, and every one counts."""
    calls = given.rounds(400)
    for name, goal in GOALS.items():
        module = getattr(given.modules, name)
        held = hold(given, module)
        idle: list[float] = []
        loaded: list[float] = []
        for _ in range(given.rounds(_TURNS)):
            # A compile goes on when its caller has gone.
            with given.daemon.client() as client:
                come_to_rest(client)
            idle += _hits(given, held, calls)
            with ExitStack() as stack:
                stack.callback(end, _start_flood(given))
                time.sleep(given.seconds(_SETTLE_S))
                loaded += _hits(given, held, calls)
        yield _row(f"{held.what}: p50", loaded, idle, 50)
        yield _row(f"{held.what}: p99", loaded, idle, 99, goal)
        yield _row(f"{held.what}: longest", loaded, idle, 100)
        if module is given.modules.medium:
            yield _in_process(given, max(loaded))


def _in_process(given: Setting, longest: float) -> Row:
    """What a compile does to the other threads of its process, in the engine that holds the GIL."""
    target = given.targets["wasmer"]
    with EngineProcess(target.engine, target.triple, target.cpu) as process:
        stalls = [process.measure("stall", given.modules.large.path) for _ in range(_TURNS)]
    return Row(
        _GROUP,
        "longest of all",
        longest,
        f"stall by {target.engine.id} in-process",
        max(stalls),
        longest / max(stalls),
        (longest / max(stalls), longest / min(stalls)),
        _TURNS,
    )


def _hits(given: Setting, held: Held, calls: int) -> list[float]:
    stream = RawStream(given.daemon.address, COMPILE)
    try:
        for _ in range(calls // 10):
            stream.drain(held.request)
        return [timed(lambda: stream.drain(held.request)) for _ in range(calls)]
    finally:
        stream.close()


def _start_flood(given: Setting) -> subprocess.Popen[str]:
    with given.daemon.client() as client:
        workers = {each.engine: each.workers for each in client.stats().workers}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bench.flood", given.daemon.address),
            str(given.modules.large.path),
            *(f"{engine}={count}" for engine, count in workers.items()),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    process.stdout.readline()
    return process


def _row(
    what: str,
    loaded: list[float],
    idle: list[float],
    percent: int,
    goal: float | None = None,
) -> Row:
    ours, yardstick = percentile(loaded, percent), percentile(idle, percent)
    size = max(1, len(idle) // _TURNS)
    ratios = [
        percentile(loaded[at : at + size], percent) / percentile(idle[at : at + size], percent)
        for at in range(0, len(idle) - size + 1, size)
    ]
    spread = (min(ratios), max(ratios))
    return Row(
        _GROUP,
        what,
        ours,
        "the same, idle",
        yardstick,
        ours / yardstick,
        spread,
        len(idle),
        goal,
    )
