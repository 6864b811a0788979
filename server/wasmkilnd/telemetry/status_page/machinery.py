"""Tiers, engines and what confines jobs."""

from __future__ import annotations

from wasmkilnd.model import EngineWarmUp, TierUsage
from wasmkilnd.telemetry.metrics import OK, EngineUsage, Metrics, Readings
from wasmkilnd.telemetry.status_page.elements import bar, mark, table
from wasmkilnd.telemetry.status_page.markup import Child, Markup, join, tag
from wasmkilnd.telemetry.status_page.sources import EngineView, Sources
from wasmkilnd.telemetry.status_page.words import NONE, count, duration, percent, size

_TIERS = {"memory": "Memory", "host_store": "Host store", "redis": "Redis"}


def tiers(sources: Sources, now: Readings) -> Markup:
    """Return what each tier holds, and how well it answers."""
    rows = [_tier(sources.metrics, tier, usage, now) for tier, usage in now.tiers.items()]
    remarks = [
        f"Writes that wait: {count(now.remote.pending_writes)} to Redis,"
        f" {count(now.host.pending_writes)} to the host store; given up:"
        f" {count(now.remote.dropped_writes)} and {count(now.host.dropped_writes)}.",
        f"Pins: {count(now.pins)}.",
    ]
    if (spaces := sources.namespaces()) > 1:
        remarks.append(f"Figures are sums over {count(spaces)} namespaces.")
    heads = ("Tier", "State", "Filled", "Entries", "Hits", "Misses", "Errors", "Evicted", "Takes")
    return join(table("Tiers", heads, rows), tag("p", " ".join(remarks), class_="remark"))


def _tier(metrics: Metrics, tier: str, usage: TierUsage, now: Readings) -> tuple[Child, ...]:
    lookups = metrics.counts["tier_lookups"]
    took = metrics.summary("tier_lookup_duration_seconds", tier, "artifact")
    filled = size(usage.bytes)
    if usage.limit_bytes:
        part = usage.bytes / usage.limit_bytes
        words = f"{filled} of {size(usage.limit_bytes)}"
        colour = "fill high" if part > 0.95 else "fill"
        filled = join(bar(part, f"{percent(part)} filled", colour), words)
    entries = count(usage.entries)
    if usage.pinned_entries:
        entries += f", {count(usage.pinned_entries)} pinned"
    return (
        _TIERS[tier],
        _state(tier, usage, now),
        filled,
        entries,
        count(lookups[tier, "artifact", "hit"]),
        count(lookups[tier, "artifact", "miss"]),
        count(metrics.errors(tier)),
        count(usage.evictions),
        f"{duration(took.p50_s)}, 99 % {duration(took.p99_s)}" if took.count else NONE,
    )


def _state(tier: str, usage: TierUsage, now: Readings) -> Markup:
    if tier == "redis":
        if now.remote.switched_off:
            return mark("off", "quiet")
        return mark(f"{now.remote.mode}, up", "good") if now.remote.up else mark("down", "bad")
    if tier == "host_store" and not usage.limit_bytes:
        return mark("off", "quiet")
    if tier == "host_store" and not now.host.up:
        return mark("down", "bad")
    return mark("up", "good")


def engines(sources: Sources, now: Readings) -> Markup:
    """Return the engines, those that are not served, and warm-ups."""
    served = sources.engines()
    rows = [
        _engine(sources, engine, now.engines.get(engine.id, EngineUsage())) for engine in served
    ]
    rows += [
        (one.id, mark("not served", "bad"), one.cause, NONE, NONE, NONE, NONE)
        for one in sources.unserved()
    ]
    heads = ("Engine", "State", "Isolation", "Workers", "Queued", "Compiled", "Takes")
    jobs = tag("p", f"Jobs are {sources.isolation()}.", class_="remark")
    known = (
        tag("p", f"{engine.id} has a known vulnerability. {text}", class_="remark")
        for engine in served
        for text in engine.advisories
    )
    return join(table("Engines", heads, rows), *known, jobs, *map(_warm_up, now.warm_ups))


def _engine(sources: Sources, engine: EngineView, usage: EngineUsage) -> tuple[Child, ...]:
    took = sources.metrics.summary("compile_duration_seconds", engine.id, OK)
    replaced = sources.metrics.counts["workers_replaced"].get((engine.id,), 0)
    workers = f"{usage.busy} of {usage.workers} busy"
    if replaced:
        workers += f", {count(replaced)} replaced"
    isolation = engine.isolation
    gaps = ", ".join(f"{gap.name} {gap.state.value}" for gap in isolation.gaps)
    broken = ("broken", "bad") if sources.isolation_required else ("not confined", "quiet")
    held = mark(*(("holds", "good") if isolation.holds else broken))
    return (
        engine.id,
        join(
            mark("served", "good"),
            join(" ", mark("default", "quiet")) if engine.default else None,
            join(" ", mark("vulnerable", "bad")) if engine.advisories else None,
        ),
        join(held, f" ({gaps})" if gaps else None),
        workers if usage.workers else mark("no worker", "bad"),
        count(usage.queued),
        count(took.count),
        f"{duration(took.p50_s)}, 99 % {duration(took.p99_s)}" if took.count else NONE,
    )


def _warm_up(one: EngineWarmUp) -> Markup:
    ended = one.done + one.failed
    state = "ended" if one.ended else "under way"
    failed = f", {count(one.failed)} failed" if one.failed else ""
    words = (
        f"Warm-up of {one.engine_id} from {one.from_engine_id}, {state}:"
        f" {count(one.done)} of {count(one.total)} artifacts{failed}."
    )
    part = ended / one.total if one.total else float(one.ended)
    return tag("p", words, bar(part, percent(part)), class_="remark")
