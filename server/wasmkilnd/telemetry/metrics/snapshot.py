"""What Stats answers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wasmkilnd.model import Origin, RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.window import LatencySummary


@dataclass(frozen=True, slots=True)
class TierSnapshot:
    """One tier: what it holds now, and what was asked of it since the start."""

    tier: str
    usage: TierUsage
    hits: int
    misses: int
    module_hits: int
    module_misses: int
    errors: int
    """Look-ups and stores that failed, and values that did not verify."""
    get_latency: LatencySummary
    """Of look-ups for artifacts that the tier answered, hits and misses."""
    put_latency: LatencySummary
    """Of stores that succeeded."""


@dataclass(frozen=True, slots=True)
class CompileSnapshot:
    """Compilations by one engine with one outcome."""

    engine_id: str
    outcome: str
    duration: LatencySummary


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What an engine's pool is doing now."""

    workers: int = 0
    busy: int = 0
    queued: int = 0
    """Calls that wait for a worker."""
    queued_in_background: int = 0
    """Those of them that nobody waits for."""
    queued_callers: int = 0
    """Callers who take turns."""
    queued_bytes: int = 0
    """The size of the modules that wait."""
    expected_wait_s: float = 0.0
    """How long one more caller would wait."""


@dataclass(frozen=True, slots=True)
class TrafficUsage:
    """What calls hold now."""

    calls: int = 0
    receive_bytes: int = 0
    """Requests, those that arrive slowly counted in full."""
    send_bytes: int = 0
    """Copies of answers that callers have not read."""
    pinned_bytes: int = 0
    """Artifacts that are on their way."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """One engine's pool: now, and since the start."""

    engine_id: str
    usage: EngineUsage
    replaced: int
    queue_wait: LatencySummary


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is counted, at about one moment."""

    version: str
    started_at_s: float
    """Unix time."""
    uptime_s: float
    tiers: tuple[TierSnapshot, ...]
    compiles: tuple[CompileSnapshot, ...]
    """``ok`` for every engine, and the other outcomes that happened."""
    engines: tuple[EngineSnapshot, ...]
    flights: int
    flights_joined: int
    quarantined: int
    """Modules that this daemon knows to be refused."""
    served: Mapping[Origin, int]
    rejected: int
    """Stored values that did not verify."""
    remote: RemoteStatus

    @property
    def hit_ratio(self) -> float:
        """Return from a tier, of all; 0 before the first."""
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
