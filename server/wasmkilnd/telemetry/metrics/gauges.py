"""The metrics that belong to other parts of the daemon, read when Prometheus or Stats asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import structlog
from prometheus_client import Metric
from prometheus_client.registry import Collector

from wasmkilnd.model import EngineWarmUp, HostStatus, Isolation, RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.catalogue import TIERS
from wasmkilnd.telemetry.metrics.families import of_readings
from wasmkilnd.telemetry.metrics.readings import (
    EngineUsage,
    Readings,
    ReloadStatus,
    TlsStatus,
    TrafficUsage,
    no_quotas,
)

T = TypeVar("T")


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
        self.engine_states: Callable[[], Mapping[str, bool]] = dict
        self.isolation: Callable[[], Mapping[str, Isolation]] = dict
        self.ready: Callable[[], bool] = bool
        self.reloads: Callable[[], Mapping[str, ReloadStatus]] = dict
        self.log_lines_dropped: Callable[[], int] = int

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
            engine_states=_read("engines", self.engine_states, {}),
            isolation=_read("isolation", self.isolation, {}),
            ready=_read("readiness", self.ready, False),
            reloads=_read("reloads", self.reloads, {}),
            log_lines_dropped=_read("log", self.log_lines_dropped, 0),
        )

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as prometheus_client asks for them."""
        yield from of_readings(self.read())


def _read(what: str, source: Callable[[], T], otherwise: T) -> T:
    try:
        return source()
    except Exception as error:  # one broken part must not cost the whole page
        structlog.get_logger().warning("cannot read a metric", source=what, error=repr(error))
        return otherwise
