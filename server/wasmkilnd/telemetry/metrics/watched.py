"""Values that belong to other parts, and are read only when somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog

from wasmkilnd.model import RemoteStatus, TierUsage
from wasmkilnd.telemetry.metrics.snapshot import EngineUsage, TrafficUsage

T = TypeVar("T")


class Watched:
    """The gauges' sources. A source that fails reads as nothing; reading never raises."""

    def __init__(self) -> None:
        self._tiers: dict[str, Callable[[], TierUsage]] = {}
        self._engines: dict[str, Callable[[], EngineUsage]] = {}
        self._flights: Callable[[], int] = lambda: 0
        self._traffic: Callable[[], TrafficUsage] = TrafficUsage
        self._quarantined: Callable[[], int] = lambda: 0
        self._remote: Callable[[], RemoteStatus] = lambda: RemoteStatus("none", up=False)

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
        """Read how many modules are refused from ``size``."""
        self._quarantined = size

    def watch_traffic(self, usage: Callable[[], TrafficUsage]) -> None:
        """Read what calls hold from ``usage``."""
        self._traffic = usage

    def watch_remote(self, status: Callable[[], RemoteStatus]) -> None:
        """Read whether Redis answers, and what waits to go there, from ``status``."""
        self._remote = status

    def tier(self, tier: str) -> TierUsage:
        """Return what the tier holds now."""
        return _read(f"tier {tier}", self._tiers.get(tier, TierUsage), TierUsage())

    def engine(self, engine_id: str) -> EngineUsage:
        """Return what the engine's pool is doing now."""
        usage = self._engines.get(engine_id, EngineUsage)
        return _read(f"engine {engine_id}", usage, EngineUsage())

    def flights(self) -> int:
        """Return how many compilations are under way."""
        return _read("flights", self._flights, 0)

    def quarantined(self) -> int:
        """Return how many modules are refused."""
        return _read("quarantine", self._quarantined, 0)

    def traffic(self) -> TrafficUsage:
        """Return what calls hold now."""
        return _read("traffic", self._traffic, TrafficUsage())

    def remote(self) -> RemoteStatus:
        """Return how the shared tier is."""
        return _read("redis", self._remote, RemoteStatus("none", up=False, detail="not readable"))


def _read(what: str, source: Callable[[], T], otherwise: T) -> T:
    try:
        return source()
    except Exception as error:  # one broken source must not take the whole page along
        structlog.get_logger().warning("metric source failed", source=what, error=repr(error))
        return otherwise
