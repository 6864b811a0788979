"""The response of Stats, read from the same metrics as /metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import timestamp_pb2
from wasmkiln.v1 import module_service_pb2 as pb

from wasmkilnd.model import HITS, Origin, QuotaReading, TierUsage
from wasmkilnd.rpc.wire.messages import duration
from wasmkilnd.telemetry.metrics.catalogue import ERROR, Catalogue
from wasmkilnd.telemetry.metrics.readings import EngineUsage
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.telemetry.metrics.series import Latency, count_of


def stats_response(
    metrics: Metrics,
    namespace: str = "",
    quotas: Iterable[QuotaReading] = (),
    engine_names: Mapping[str, str] | None = None,
) -> pb.StatsResponse:
    """Return what ``metrics``, those of ``namespace``, hold now. Never raises."""
    catalogue, now = metrics.catalogue, metrics.gauges.read()
    started_at = timestamp_pb2.Timestamp()
    started_at.FromNanoseconds(int(metrics.started_at_s * 1e9))
    compiles = sorted(catalogue.compile_durations.all(), key=lambda each: each[0])
    return pb.StatsResponse(
        version=metrics.version,
        started_at=started_at,
        uptime=duration(metrics.uptime_s),
        tiers=[_tier(catalogue, tier, usage) for tier, usage in now.tiers.items()],
        compiles=[_compiles(engine, outcome, took) for (engine, outcome), took in compiles],
        workers=[_workers(catalogue, engine, usage) for engine, usage in now.engines.items()],
        queue_depth=sum(usage.queued for usage in now.engines.values()),
        busy_workers=sum(usage.busy for usage in now.engines.values()),
        flights=now.flights,
        flights_joined=count_of(catalogue.flights_joined),
        quarantined_modules=now.quarantined,
        pins=now.pins,
        hit_ratio=hit_ratio(catalogue),
        redis_up=now.remote.up,
        redis_mode=now.remote.mode,
        redis_detail=now.remote.detail,
        pending_writes=now.remote.pending_writes,
        dropped_writes=now.remote.dropped_writes,
        namespace=namespace,
        engine_names=engine_names,
        quotas=[
            pb.QuotaUsage(
                identity=each.identity,
                quota=each.kind,
                used=each.used,
                limit=each.limit,
                refused=each.refused,
            )
            for each in quotas
        ],
        engine_warm_ups=[
            pb.EngineWarmUp(
                engine=each.engine_id,
                from_engine=each.from_engine_id,
                total=each.total,
                done=each.done,
                failed=each.failed,
                ended=each.ended,
            )
            for each in now.warm_ups
        ],
    )


def _tier(catalogue: Catalogue, tier: str, usage: TierUsage) -> pb.TierStats:
    def lookups(what: str, outcome: str) -> int:
        return count_of(catalogue.lookups.at(tier, what, outcome))

    failed = lookups("artifact", ERROR) + lookups("module", ERROR)
    failed += count_of(catalogue.stores.at(tier, ERROR))
    rejected = (counter for (where, _), counter in catalogue.rejected.all() if where == tier)
    return pb.TierStats(
        tier=tier,
        entries=usage.entries,
        bytes=usage.bytes,
        limit_bytes=usage.limit_bytes,
        evictions=usage.evictions,
        pinned_entries=usage.pinned_entries,
        pinned_bytes=usage.pinned_bytes,
        hits=lookups("artifact", "hit"),
        misses=lookups("artifact", "miss"),
        errors=failed + sum(map(count_of, rejected)),
        module_hits=lookups("module", "hit"),
        module_misses=lookups("module", "miss"),
        get_latency=_latency(catalogue.lookup_durations.at(tier, "artifact")),
        put_latency=_latency(catalogue.store_durations.at(tier)),
    )


def _compiles(engine_id: str, outcome: str, took: Latency) -> pb.CompileStats:
    latency = _latency(took)
    return pb.CompileStats(engine=engine_id, outcome=outcome, count=latency.count, duration=latency)


def _workers(catalogue: Catalogue, engine_id: str, usage: EngineUsage) -> pb.WorkerStats:
    return pb.WorkerStats(
        engine=engine_id,
        workers=usage.workers,
        busy=usage.busy,
        queued=usage.queued,
        replaced=count_of(catalogue.workers_replaced.at(engine_id)),
    )


def hit_ratio(catalogue: Catalogue) -> float:
    """Return the share of answered Compile calls that a tier answered."""
    served = {origin: count_of(catalogue.served.at(origin.value)) for origin in Origin}
    answered = sum(served.values())
    hits = sum(served[origin] for origin in HITS)
    return hits / answered if answered else 0.0


def _latency(series: Latency) -> pb.LatencySummary:
    summary = series.summary()
    return pb.LatencySummary(
        count=summary.count,
        sum=duration(summary.sum_s),
        p50=duration(summary.p50_s),
        p90=duration(summary.p90_s),
        p99=duration(summary.p99_s),
    )
