"""Hits per second, and CPU time per hit, with one caller and with many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.bare import METHOD
from bench.hits import hold
from bench.lab import start_server
from bench.machine import cpu_seconds
from bench.orders import Program
from bench.raw import COMPILE
from bench.results import Row, compare
from bench.setting import Setting

CALLERS = (1, 8, 64)

_CHUNK_BYTES = 1024 * 1024
_TURNS = 4
_TURN_S = 1.5

Figures = dict[str, list[float]]


def callers(given: Setting) -> Iterator[Row]:
    """The daemon and a bare server by turns, 20 KB a hit."""
    held = hold(given, given.modules.small)
    request = given.folder / "hit.request"
    request.write_bytes(held.request)
    with ExitStack() as stack:
        bare = start_server(stack, "asyncio", str(held.file), str(_CHUNK_BYTES))
        for count in CALLERS:
            per_hit: Figures = defaultdict(list)
            cpu: Figures = defaultdict(list)
            with ExitStack() as turn:
                loads = {
                    name: (pid, _load(turn, address, method, request, count))
                    for name, pid, address, method in (
                        ("daemon", given.daemon.pid, given.daemon.address, COMPILE),
                        ("bare", bare.pid, f"127.0.0.1:{bare.port}", METHOD),
                    )
                }
                for _ in range(given.rounds(_TURNS)):
                    for name, (pid, load) in loads.items():
                        before = cpu_seconds(pid)
                        done = load.ask(seconds=given.seconds(_TURN_S))
                        per_hit[name].append(done["seconds"] / done["calls"])
                        cpu[name].append((cpu_seconds(pid) - before) / done["calls"])
            yield from _rows(count, held.what, per_hit, cpu)


def _load(stack: ExitStack, address: str, method: str, request: Path, callers: int) -> Program:
    load = Program(stack, "bench.scale.load", address, method, str(request), str(callers))
    load.begun()
    return load


def _rows(callers: int, what: str, per_hit: Figures, cpu: Figures) -> Iterator[Row]:
    group = f"hits of {what}, {callers} caller{'s' if callers > 1 else ''}"
    against = "bare grpcio (asyncio)"
    rates = [1 / min(per_hit[name]) for name in ("daemon", "bare")]
    yield compare(
        group,
        "time per hit",
        per_hit["daemon"],
        against,
        per_hit["bare"],
        note=f"at best {rates[0]:,.0f} hits per second, the bare server {rates[1]:,.0f}",
    )
    yield compare(group, "CPU time of the server per hit", cpu["daemon"], against, cpu["bare"])
