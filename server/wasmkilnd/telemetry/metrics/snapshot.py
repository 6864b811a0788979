"""What Stats returns, as values: read from the same metrics as /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Counter

from wasmkilnd.model import Origin, RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.catalogue import ERROR, Catalogue
from wasmkilnd.telemetry.metrics.gauges import EngineUsage, Gauges
from wasmkilnd.telemetry.metrics.series import LatencySummary


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier: what it holds now, and its look-ups and writes since the start."""

    tier: str
    usage: TierUsage
    hits: int
    misses: int
    module_hits: int
    module_misses: int
    errors: int
    """Look-ups and writes that failed, and values that did not verify."""
    get_latency: LatencySummary
    """Look-ups for artifacts that ended with a hit or a miss."""
    put_latency: LatencySummary
    """Writes that succeeded."""


@dataclass(frozen=True, slots=True)
class CompileSnapshot:
    """Compilations by one engine with one outcome."""

    engine_id: str
    outcome: str
    duration: LatencySummary


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """One engine's pool: now, and since the start."""

    engine_id: str
    usage: EngineUsage
    replaced: int
    queue_wait: LatencySummary


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that Stats returns, read at about one moment."""

    version: str
    started_at_s: float
    """Unix time."""
    uptime_s: float
    tiers: tuple[TierSnapshot, ...]
    compiles: tuple[CompileSnapshot, ...]
    """``ok`` for every engine, and those other outcomes that happened."""
    engines: tuple[EngineSnapshot, ...]
    flights: int
    flights_joined: int
    quarantined: int
    """Modules in quarantine that this daemon knows of."""
    served: Mapping[Origin, int]
    rejected: int
    """Stored values that did not verify."""
    remote: RemoteStatus

    @property
    def hit_ratio(self) -> float:
        """The share of Compile calls served from a tier; 0 before the first call."""
        answered = sum(self.served.values())
        hits = self.served[Origin.MEMORY] + self.served[Origin.REDIS]
        return hits / answered if answered else 0.0

    @property
    def queue_depth(self) -> int:
        """Calls that wait for a worker, over all engines."""
        return sum(engine.usage.queued for engine in self.engines)

    @property
    def busy_workers(self) -> int:
        """Workers that are compiling, over all engines."""
        return sum(engine.usage.busy for engine in self.engines)


def take_snapshot(
    catalogue: Catalogue, gauges: Gauges, *, version: str, started_at_s: float, uptime_s: float
) -> Snapshot:
    """Return what the metrics hold now. Never raises."""
    compiles = (
        CompileSnapshot(engine_id, outcome, latency.summary())
        for (engine_id, outcome), latency in catalogue.compile_durations.all()
    )
    engines = (
        EngineSnapshot(
            engine_id,
            usage,
            _count(catalogue.workers_replaced.at(engine_id)),
            catalogue.queue_waits.at(engine_id).summary(),
        )
        for engine_id, usage in gauges.engines().items()
    )
    return Snapshot(
        version=version,
        started_at_s=started_at_s,
        uptime_s=uptime_s,
        tiers=tuple(_tier(catalogue, tier, usage) for tier, usage in gauges.tiers().items()),
        compiles=tuple(sorted(compiles, key=lambda each: (each.engine_id, each.outcome))),
        engines=tuple(engines),
        flights=gauges.flights(),
        quarantined=gauges.quarantined(),
        flights_joined=_count(catalogue.flights_joined),
        served={origin: _count(catalogue.served.at(origin.value)) for origin in Origin},
        rejected=sum(_count(counter) for _, counter in catalogue.rejected.all()),
        remote=gauges.remote(),
    )


def _tier(catalogue: Catalogue, tier: str, usage: TierUsage) -> TierSnapshot:
    def lookups(what: str, outcome: str) -> int:
        return _count(catalogue.lookups.at(tier, what, outcome))

    failed = lookups("artifact", ERROR) + lookups("module", ERROR)
    failed += _count(catalogue.stores.at(tier, ERROR))
    failed += sum(
        _count(counter) for (where, _), counter in catalogue.rejected.all() if where == tier
    )
    return TierSnapshot(
        tier=tier,
        usage=usage,
        hits=lookups("artifact", "hit"),
        misses=lookups("artifact", "miss"),
        module_hits=lookups("module", "hit"),
        module_misses=lookups("module", "miss"),
        errors=failed,
        get_latency=catalogue.lookup_durations.at(tier, "artifact").summary(),
        put_latency=catalogue.store_durations.at(tier).summary(),
    )


def _count(counter: Counter) -> int:
    (metric,) = counter.collect()
    return int(metric.samples[0].value)
