"""The output of `stats` as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from wasmkiln._untrusted import one_line
from wasmkiln.cli.grid import Grid
from wasmkiln.cli.text import amount, share, size, time

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wasmkiln.v1.module_service_pb2 import LatencySummary, StatsResponse


def _latency(summary: LatencySummary) -> tuple[str, str, str]:
    return (
        time(summary.p50),
        time(summary.p90),
        time(summary.p99),
    )


def stats(answer: StatsResponse) -> RenderableType:
    """Show the counters of `stats`."""
    redis = f"{answer.redis_mode or 'none'} {'up' if answer.redis_up else 'not up'}"
    if answer.redis_detail:
        redis += f" ({answer.redis_detail})"
    head = Table.grid(padding=(0, 2))
    for name, value in (
        ("wasmkilnd", f"{answer.version}, up {time(answer.uptime)}"),
        ("namespace", answer.namespace or "default"),
        ("hit ratio", share(answer.hit_ratio)),
        ("redis", redis),
        ("now", f"{answer.busy_workers} busy, {answer.queue_depth} queued, "
                f"{answer.flights} flights"),
        ("so far", f"{answer.flights_joined} flights joined, {answer.dropped_writes} writes "
                   f"dropped, {answer.quarantined_modules} modules in quarantine, "
                   f"{answer.pins} pinned"),
    ):  # fmt: skip
        head.add_row(name, one_line(value))

    tiers = Grid(
        "tier", ">entries", ">bytes", ">pinned", ">limit", ">hits", ">misses", ">evictions",
        ">errors", ">get p50", ">p90", ">p99",
    )  # fmt: skip
    for tier in answer.tiers:
        tiers.row(
            tier.tier,
            str(tier.entries),
            size(tier.bytes),
            size(tier.pinned_bytes),
            size(tier.limit_bytes) if tier.limit_bytes else "-",
            str(tier.hits),
            str(tier.misses),
            str(tier.evictions),
            str(tier.errors),
            *_latency(tier.get_latency),
        )

    compiles = Grid("engine", "outcome", ">compiles", ">p50", ">p90", ">p99")
    for one in answer.compiles:
        if one.count:
            compiles.row(one.engine, one.outcome, str(one.count), *_latency(one.duration))

    workers = Grid("engine", ">workers", ">busy", ">queued", ">replaced")
    for pool in answer.workers:
        workers.row(
            pool.engine, str(pool.workers), str(pool.busy), str(pool.queued), str(pool.replaced)
        )
    quotas = Grid("identity", "quota", ">used", ">limit", ">refused")
    for quota in answer.quotas:
        quotas.row(
            quota.identity or "all",
            quota.quota,
            amount(quota.used, quota.quota),
            amount(quota.limit, quota.quota),
            str(quota.refused),
        )
    warm_ups = Grid("new engine", "warm from", ">artifacts", ">done", ">failed", "names")
    for each in answer.engine_warm_ups:
        warm_ups.row(
            each.engine,
            each.from_engine,
            str(each.total),
            str(each.done),
            str(each.failed),
            "moved" if each.ended else "wait",
        )
    names = Grid("name", "engine that it stands for")
    for name, engine in sorted(answer.engine_names.items()):
        names.row(name, engine)
    tables = (tiers, compiles, workers, names, quotas, warm_ups)
    shown = (table.shown() for table in tables if table)
    return Group(head, *shown)
