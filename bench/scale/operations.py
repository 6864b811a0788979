"""Get, put and evict of each tier alone: with few entries, and with many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
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

_TURNS, _QUICK_TURNS = 9, 3
_BUDGET_S = 20.0  # For one operation of one tier.


@dataclass(frozen=True)
class _Tier:
    name: str
    counts: Mapping[str, int]
    """How many of each operation make one turn."""


_TIERS = (
    _Tier("memory", {"get": 2000, "put": 1000, "evict": 200}),
    _Tier("host_store", {"get": 200, "path": 1000, "put": 30, "evict": 30}),
    _Tier("redis", {"get": 100, "put": 50, "evict": 1}),
)


def operations(given: Setting) -> Iterator[Row]:
    """Each tier with each number of entries, against the least number."""
    for tier in _TIERS:
        with ExitStack() as stack:
            yield from _of_tier(given, stack, tier)


def _of_tier(given: Setting, stack: ExitStack, tier: _Tier) -> Iterator[Row]:
    sizes = given.sizes
    servers: dict[int, Valkey] = {}
    probes: dict[int, Program] = {}
    for size in sizes:
        place = str(given.folder / f"scale-{tier.name}-{size}")
        if tier.name == "redis":
            servers[size] = start_valkey(stack, given.folder)
            place = f"unix://{servers[size].socket}"
        probes[size] = Program(stack, "bench.scale.probe", tier.name, str(size), place)
    for probe in probes.values():
        probe.begun()
    least, most = sizes[0], sizes[-1]
    note = ""
    if tier.name == "host_store" and files_of(most) < most:
        note = f"{files_of(most):,} entries have files, the others only a row in the index"
    for operation, count in tier.counts.items():
        series = collect(
            {
                str(size): partial(_seconds, probe, operation, count)
                for size, probe in probes.items()
            },
            given.rounds(_TURNS, _QUICK_TURNS),
            warm_up=1,
            budget_s=_BUDGET_S,
        )
        for size in sizes[1:]:
            yield compare(
                f"{operation} of the {tier.name} tier",
                f"with {size:,} entries",
                series[str(size)],
                f"with {least:,}",
                series[str(least)],
                COST_GOAL if size == most else None,
                note if size == most else "",
            )
    yield _memory(tier, most, probes[most].ask(op="memory"), servers.get(most))


def _seconds(probe: Program, operation: str, count: int) -> float:
    return float(probe.ask(op=operation, count=count)["seconds"])


def _memory(tier: _Tier, size: int, answer: Mapping[str, float], server: Valkey | None) -> Row:
    note = f"longest pause by Python's garbage collector {figure(answer['longest_pause_s'], 's')}"
    if server:
        note = f"the server has {figure(_bytes_of(server), 'B')} for them"
    return resident_row(
        f"a process with the {tier.name} tier and {size:,} entries",
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
