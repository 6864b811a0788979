"""The metrics that belong to other parts of the daemon, read when Prometheus or Stats asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from wasmkilnd.model import EngineWarmUp, HostStatus, RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.catalogue import PREFIX, QUOTAS, TIERS

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


@dataclass(frozen=True, slots=True)
class TlsStatus:
    """The files of TLS that are in force."""

    not_after_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """When each expires, by ``cert`` and ``client_ca``; empty where TLS is off."""
    failures: int = 0
    """How often changed files could not be used."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What every source returned, at about one moment."""

    tiers: Mapping[str, TierUsage]
    engines: Mapping[str, EngineUsage]
    """In the order in which the engines were added."""
    flights: int
    quarantined: int
    pins: int
    traffic: TrafficUsage
    remote: RemoteStatus
    host: HostStatus
    quotas: Mapping[str, tuple[float, int]]
    """By kind: the largest part of a limit that an identity uses, and all refusals."""
    tls: TlsStatus
    warm_ups: Sequence[EngineWarmUp]


class Gauges(Collector):
    """Holds the sources: the functions that return what the other parts know.

    ``app`` sets each when the part starts. Until then, and while a source fails, it reads as
    nothing. Reading never raises.
    """

    def __init__(self) -> None:
        self.tiers: dict[str, Callable[[], TierUsage]] = dict.fromkeys(TIERS, TierUsage)
        self.engines: dict[str, Callable[[], EngineUsage]] = {}
        self.flights: Callable[[], int] = int
        self.quarantined: Callable[[], int] = int
        self.pins: Callable[[], int] = int
        self.traffic: Callable[[], TrafficUsage] = TrafficUsage
        self.remote: Callable[[], RemoteStatus] = lambda: RemoteStatus("none", up=False)
        self.host: Callable[[], HostStatus] = HostStatus
        self.quotas: Callable[[], Mapping[str, tuple[float, int]]] = no_quotas
        self.tls: Callable[[], TlsStatus] = TlsStatus
        self.warm_ups: Callable[[], Sequence[EngineWarmUp]] = tuple

    def read(self) -> Readings:
        """Return what every source returns now."""
        unreadable = RemoteStatus("none", up=False, detail="not readable")
        return Readings(
            tiers={
                tier: _read(f"tier {tier}", source, TierUsage())
                for tier, source in self.tiers.items()
            },
            engines={
                engine_id: _read(f"engine {engine_id}", source, EngineUsage())
                for engine_id, source in self.engines.items()
            },
            flights=_read("flights", self.flights, 0),
            quarantined=_read("quarantine", self.quarantined, 0),
            pins=_read("pins", self.pins, 0),
            traffic=_read("traffic", self.traffic, TrafficUsage()),
            remote=_read("redis", self.remote, unreadable),
            host=_read("host store", self.host, HostStatus()),
            quotas=_read("quotas", self.quotas, no_quotas()),
            tls=_read("TLS", self.tls, TlsStatus()),
            warm_ups=_read("warm-ups", self.warm_ups, ()),
        )

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as prometheus_client asks for them."""
        now = self.read()
        yield from _of_tiers(now.tiers)
        yield from _of_engines(now.engines)
        yield from _of_quotas(now.quotas)
        yield _gauge("flights", "Compilations under way or waiting.", now.flights)
        yield _gauge("calls", "Calls under way.", now.traffic.calls)
        yield _gauge(
            "receive_bytes",
            "Bytes of requests in memory; one that arrives slowly counts in full.",
            now.traffic.receive_bytes,
        )
        yield _gauge(
            "send_bytes",
            "Bytes of responses that callers have not read yet.",
            now.traffic.send_bytes,
        )
        yield _gauge(
            "send_pinned_bytes",
            "Bytes of artifacts held in memory while they are sent; pinned modules are in"
            f" {PREFIX}pinned_entry_bytes.",
            now.traffic.pinned_bytes,
        )
        yield _gauge(
            "quarantined_modules",
            "Modules in quarantine that this daemon knows of.",
            now.quarantined,
        )
        yield _gauge("pins", "Modules that are pinned.", now.pins)
        yield _gauge("redis_up", "Whether the Redis tier answers.", now.remote.up)
        yield _gauge(
            "redis_pending_writes", "Writes that wait to go to Redis.", now.remote.pending_writes
        )
        yield CounterMetricFamily(
            f"{PREFIX}redis_dropped_writes",
            "Writes to Redis that the daemon gave up.",
            now.remote.dropped_writes,
        )
        yield _gauge(
            "host_store_pending_writes",
            "Writes that wait to go to the host store.",
            now.host.pending_writes,
        )
        yield CounterMetricFamily(
            f"{PREFIX}host_store_dropped_writes",
            "Writes to the host store that the daemon gave up.",
            now.host.dropped_writes,
        )
        yield from _of_tls(now.tls)
        yield _of_warm_ups(now.warm_ups)


def _of_tiers(usages: Mapping[str, TierUsage]) -> Iterator[Metric]:
    for name, help_text, field in (
        ("tier_entries", "Entries that the tier holds.", "entries"),
        ("tier_bytes", "Bytes that the tier holds.", "bytes"),
        ("tier_limit_bytes", "Bytes that the tier may hold; 0 for no limit.", "limit_bytes"),
        ("pinned_entries", "Entries that the tier keeps for pins.", "pinned_entries"),
        (
            "pinned_entry_bytes",
            "Bytes of entries that the tier keeps for pins.",
            "pinned_bytes",
        ),
    ):
        yield _by_label(GaugeMetricFamily(PREFIX + name, help_text, labels=["tier"]), usages, field)
    for name, help_text, field in (
        ("tier_evictions", "Entries that the tier dropped to make room for others.", "evictions"),
        (
            "pinned_let_go",
            "Pinned entries that may be evicted, as pins took more than half of the tier.",
            "let_go",
        ),
    ):
        counter = CounterMetricFamily(PREFIX + name, help_text, labels=["tier"])
        yield _by_label(counter, usages, field)


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


def no_quotas() -> Mapping[str, tuple[float, int]]:
    """Return what there is to read while no identity has a quota."""
    return dict.fromkeys(QUOTAS, (0.0, 0))


def _of_quotas(quotas: Mapping[str, tuple[float, int]]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        f"{PREFIX}quota_used_ratio",
        "The largest part of its quota that any identity uses.",
        labels=["quota"],
    )
    refused = CounterMetricFamily(
        f"{PREFIX}quota_refused", "Calls refused because of a quota.", labels=["quota"]
    )
    for kind, (ratio, count) in quotas.items():
        used.add_metric([kind], ratio)
        refused.add_metric([kind], count)
    yield used
    yield refused


def _of_tls(tls: TlsStatus) -> Iterator[Metric]:
    expiry = GaugeMetricFamily(
        f"{PREFIX}tls_not_after_seconds",
        "When the first certificate of a TLS file expires, in seconds since 1970.",
        labels=["file"],
    )
    for file, not_after_s in tls.not_after_s.items():
        expiry.add_metric([file], not_after_s)
    yield expiry
    yield CounterMetricFamily(
        f"{PREFIX}tls_reload_failures",
        "Times that changed TLS files could not be used, so that the old ones stayed in force.",
        tls.failures,
    )


def _of_warm_ups(warm_ups: Sequence[EngineWarmUp]) -> Metric:
    artifacts = GaugeMetricFamily(
        f"{PREFIX}engine_warm_up_artifacts",
        "Artifacts that are compiled before names stand for a new engine.",
        labels=["engine", "state"],
    )
    for each in warm_ups:
        waiting = each.total - each.done - each.failed
        for state, count in (("done", each.done), ("failed", each.failed), ("waiting", waiting)):
            artifacts.add_metric([each.engine_id, state], count)
    return artifacts


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
