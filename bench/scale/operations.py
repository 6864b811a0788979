"""Get, put and evict of each tier alone: with few entries, and with many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial

from bench.orders import Program
from bench.results import Row, compare, figure
from bench.scale.host_files import files_of
from bench.setting import Setting
from bench.timing import collect
from bench.valkey import Valkey, start_valkey

COST_GOAL = 1.2
MEMORY_GOAL = 1.0
SPARE_BYTES = 150_000_000
"""What a process may have on top of what the settings let it fill."""

_TURNS = 9
_BUDGET_S = 20.0  # For one operation of one tier.


_COUNTS = {
    "memory": {"get": 2000, "put": 1000, "evict": 200},
    "host_store": {"get": 200, "path": 1000, "put": 30, "evict": 30},
    "redis": {"get": 100, "put": 50, "evict": 30},
}
"""Of each tier: how many of each operation make one turn."""


def operations(tier: str, given: Setting) -> Iterator[Row]:
    """One tier with many entries, beside one with few."""
    least, most = given.sizes
    with ExitStack() as stack:
        servers: dict[int, Valkey] = {}
        probes: dict[int, Program] = {}
        for size in given.sizes:
            place = str(given.folder / f"scale-{tier}-{size}")
            if tier == "redis":
                servers[size] = start_valkey(stack, given.folder)
                place = f"unix://{servers[size].socket}"
            probes[size] = Program(stack, "bench.scale.probe", tier, str(size), place)
        for probe in probes.values():
            probe.begun()
        note = ""
        if tier == "host_store" and files_of(most) < most:
            note = f"{files_of(most):,} entries are stored: each takes inodes"
        for operation, count in _COUNTS[tier].items():
            series = collect(
                {
                    str(size): partial(_seconds, probe, operation, given.rounds(count))
                    for size, probe in probes.items()
                },
                given.rounds(_TURNS),
                warm_up=1,
                budget_s=_BUDGET_S,
            )
            yield compare(
                f"{operation} of the {tier} tier",
                f"with {most:,} entries",
                series[str(most)],
                f"with {least:,}",
                series[str(least)],
                COST_GOAL,
                note,
            )
        yield _memory(tier, most, probes[most].ask(op="memory"), servers.get(most))


def _seconds(probe: Program, operation: str, count: int) -> float:
    return float(probe.ask(op=operation, count=count)["seconds"])


def _memory(tier: str, size: int, answer: Mapping[str, float], server: Valkey | None) -> Row:
    note = f"longest pause by Python's garbage collector {figure(answer['longest_pause_s'], 's')}"
    if server:
        note = f"the server has {figure(_bytes_of(server), 'B')} for them"
    return resident_row(
        f"a process with the {tier} tier and {size:,} entries",
        answer["resident"],
        answer["budget"],
        note,
    )


def resident_row(what: str, resident: float, budget: float, note: str = "") -> Row:
    """Return the row that compares resident memory with what it may be."""
    allowed = budget + SPARE_BYTES
    ratio = resident / allowed
    return Row(
        "resident memory",
        what,
        resident,
        f"budget of {figure(budget, 'B')} + {figure(SPARE_BYTES, 'B')}",
        allowed,
        ratio,
        (ratio, ratio),
        1,
        MEMORY_GOAL,
        note,
        "B",
    )


def _bytes_of(server: Valkey) -> float:
    with ExitStack() as stack:
        return float(server.client(stack).info("memory")["used_memory_rss"])
