"""The metrics that belong to other parts of the daemon, read when Prometheus or Stats asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import structlog
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from wasmkilnd.model import RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.catalogue import PREFIX, TIERS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What an engine's pool is doing now."""

    workers: int = 0
    busy: int = 0
    queued: int = 0
    """Jobs that wait for a worker."""
    queued_in_background: int = 0
    """Those of them that no caller waits for."""
    queued_callers: int = 0
    """Callers whose jobs share the queue."""
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
    """Bytes of responses that callers have not read yet."""
    pinned_bytes: int = 0
    """Bytes of artifacts held in memory while they are sent."""


class Gauges(Collector):
    """Reads each part through the function it was given; a part that fails reads as nothing.

    Until a part gives its function, it reads as nothing too. Reading never raises.
    """

    def __init__(self) -> None:
        self._tiers: dict[str, Callable[[], TierUsage]] = dict.fromkeys(TIERS, TierUsage)
        self._engines: dict[str, Callable[[], EngineUsage]] = {}
        self._flights: Callable[[], int] = int
        self._quarantined: Callable[[], int] = int
        self._traffic: Callable[[], TrafficUsage] = TrafficUsage
        self._remote: Callable[[], RemoteStatus] = lambda: RemoteStatus("none", up=False)

    def add_engine(self, engine_id: str) -> None:
        """Show an engine. Doing so again changes nothing."""
        self._engines.setdefault(engine_id, EngineUsage)

    def watch_tier(self, tier: str, usage: Callable[[], TierUsage]) -> None:
        """Read what ``tier`` holds from ``usage``, usually ``Tier.usage``."""
        self._tiers[tier] = usage

    def watch_engine(self, engine_id: str, usage: Callable[[], EngineUsage]) -> None:
        """Read what the engine's pool is doing from ``usage``."""
        self._engines[engine_id] = usage

    def watch_flights(self, flights: Callable[[], int]) -> None:
        """Read how many compilations are under way from ``flights``."""
        self._flights = flights

    def watch_quarantine(self, size: Callable[[], int]) -> None:
        """Read how many modules are in quarantine from ``size``."""
        self._quarantined = size

    def watch_traffic(self, usage: Callable[[], TrafficUsage]) -> None:
        """Read what calls hold from ``usage``."""
        self._traffic = usage

    def watch_remote(self, status: Callable[[], RemoteStatus]) -> None:
        """Read whether Redis answers, and what waits to go there, from ``status``."""
        self._remote = status

    def tiers(self) -> dict[str, TierUsage]:
        """Return what each tier holds now."""
        return {
            tier: _read(f"tier {tier}", usage, TierUsage()) for tier, usage in self._tiers.items()
        }

    def engines(self) -> dict[str, EngineUsage]:
        """Return what each engine's pool is doing now, in the order in which they were added."""
        return {
            engine_id: _read(f"engine {engine_id}", usage, EngineUsage())
            for engine_id, usage in self._engines.items()
        }

    def flights(self) -> int:
        """Return how many compilations are under way."""
        return _read("flights", self._flights, 0)

    def quarantined(self) -> int:
        """Return how many modules are in quarantine."""
        return _read("quarantine", self._quarantined, 0)

    def traffic(self) -> TrafficUsage:
        """Return what calls hold now."""
        return _read("traffic", self._traffic, TrafficUsage())

    def remote(self) -> RemoteStatus:
        """Return whether Redis answers, and what waits to go there."""
        return _read("redis", self._remote, RemoteStatus("none", up=False, detail="not readable"))

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as prometheus_client asks for them."""
        yield from _of_tiers(self.tiers())
        yield from _of_engines(self.engines())
        yield _gauge("flights", "Compilations under way or waiting.", self.flights())
        traffic = self.traffic()
        yield _gauge("calls", "Calls under way.", traffic.calls)
        yield _gauge(
            "receive_bytes",
            "Bytes of requests in memory; one that arrives slowly counts in full.",
            traffic.receive_bytes,
        )
        yield _gauge(
            "send_bytes", "Bytes of responses that callers have not read yet.", traffic.send_bytes
        )
        yield _gauge(
            "send_pinned_bytes",
            "Bytes of artifacts held in memory while they are sent.",
            traffic.pinned_bytes,
        )
        yield _gauge(
            "quarantined_modules",
            "Modules in quarantine that this daemon knows of.",
            self.quarantined(),
        )
        remote = self.remote()
        yield _gauge("redis_up", "Whether the Redis tier answers.", remote.up)
        yield _gauge(
            "redis_pending_writes", "Writes that wait to go to Redis.", remote.pending_writes
        )
        yield CounterMetricFamily(
            f"{PREFIX}redis_dropped_writes",
            "Writes to Redis that the daemon gave up.",
            remote.dropped_writes,
        )


def _of_tiers(usages: Mapping[str, TierUsage]) -> Iterator[Metric]:
    for name, help_text, field in (
        ("tier_entries", "Entries that the tier holds.", "entries"),
        ("tier_bytes", "Bytes that the tier holds.", "bytes"),
        ("tier_limit_bytes", "Bytes that the tier may hold; 0 for no limit.", "limit_bytes"),
    ):
        yield _by_label(GaugeMetricFamily(PREFIX + name, help_text, labels=["tier"]), usages, field)
    evictions = CounterMetricFamily(
        f"{PREFIX}tier_evictions",
        "Entries that the tier dropped to make room for others.",
        labels=["tier"],
    )
    yield _by_label(evictions, usages, "evictions")


def _of_engines(usages: Mapping[str, EngineUsage]) -> Iterator[Metric]:
    for name, help_text, field in (
        ("workers", "Worker processes that run.", "workers"),
        ("workers_busy", "Workers that run a job.", "busy"),
        ("queue_depth", "Jobs that wait for a worker.", "queued"),
        ("queue_background", "Jobs in the queue that no caller waits for.", "queued_in_background"),
        ("queue_callers", "Callers whose jobs share the queue.", "queued_callers"),
        ("queue_bytes", "Size of the modules whose jobs wait for a worker.", "queued_bytes"),
        (
            "queue_expected_wait_seconds",
            "How long one more caller would wait for a worker.",
            "expected_wait_s",
        ),
    ):
        gauge = GaugeMetricFamily(PREFIX + name, help_text, labels=["engine"])
        yield _by_label(gauge, usages, field)


def _by_label(
    family: GaugeMetricFamily | CounterMetricFamily, usages: Mapping[str, object], field: str
) -> Metric:
    for label, usage in usages.items():
        family.add_metric([label], getattr(usage, field))
    return family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, help_text, value)


def _read(what: str, source: Callable[[], T], otherwise: T) -> T:
    try:
        return source()
    except Exception as error:  # one broken part must not cost the whole page
        structlog.get_logger().warning("cannot read a metric", source=what, error=repr(error))
        return otherwise
