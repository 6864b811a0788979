"""Builds the response of Stats from a snapshot of the metrics."""

from __future__ import annotations

from google.protobuf import timestamp_pb2
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.rpc.wire.messages import duration
from wasmkilnd.telemetry.metrics.series import LatencySummary
from wasmkilnd.telemetry.metrics.snapshot import (
    CompileSnapshot,
    EngineSnapshot,
    Snapshot,
    TierSnapshot,
)


def stats_response(snapshot: Snapshot) -> pb.StatsResponse:
    """Return the response of Stats."""
    started_at = timestamp_pb2.Timestamp()
    started_at.FromNanoseconds(int(snapshot.started_at_s * 1e9))
    remote = snapshot.remote
    return pb.StatsResponse(
        version=snapshot.version,
        started_at=started_at,
        uptime=duration(snapshot.uptime_s),
        tiers=[_tier(tier) for tier in snapshot.tiers],
        compiles=[_compiles(compiles) for compiles in snapshot.compiles],
        workers=[_workers(engine) for engine in snapshot.engines],
        queue_depth=snapshot.queue_depth,
        busy_workers=snapshot.busy_workers,
        flights=snapshot.flights,
        flights_joined=snapshot.flights_joined,
        quarantined_modules=snapshot.quarantined,
        hit_ratio=snapshot.hit_ratio,
        redis_up=remote.up,
        redis_mode=remote.mode,
        redis_detail=remote.detail,
        pending_writes=remote.pending_writes,
        dropped_writes=remote.dropped_writes,
    )


def _tier(tier: TierSnapshot) -> pb.TierStats:
    return pb.TierStats(
        tier=tier.tier,
        entries=tier.usage.entries,
        bytes=tier.usage.bytes,
        limit_bytes=tier.usage.limit_bytes,
        evictions=tier.usage.evictions,
        hits=tier.hits,
        misses=tier.misses,
        errors=tier.errors,
        module_hits=tier.module_hits,
        module_misses=tier.module_misses,
        get_latency=_latency(tier.get_latency),
        put_latency=_latency(tier.put_latency),
    )


def _compiles(compiles: CompileSnapshot) -> pb.CompileStats:
    return pb.CompileStats(
        engine=compiles.engine_id,
        outcome=compiles.outcome,
        count=compiles.duration.count,
        duration=_latency(compiles.duration),
    )


def _workers(engine: EngineSnapshot) -> pb.WorkerStats:
    return pb.WorkerStats(
        engine=engine.engine_id,
        workers=engine.usage.workers,
        busy=engine.usage.busy,
        queued=engine.usage.queued,
        replaced=engine.replaced,
    )


def _latency(summary: LatencySummary) -> pb.LatencySummary:
    return pb.LatencySummary(
        count=summary.count,
        sum=duration(summary.sum_s),
        p50=duration(summary.p50_s),
        p90=duration(summary.p90_s),
        p99=duration(summary.p99_s),
    )
