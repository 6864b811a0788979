"""How Prometheus reads the series."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from wasmkilnd.telemetry.metrics.catalogue import TIERS, Catalogue
from wasmkilnd.telemetry.metrics.series import Count, Family
from wasmkilnd.telemetry.metrics.watched import Watched
from wasmkilnd.telemetry.metrics.window import Window

_PREFIX = "wasmkiln_"


class Exposition(Collector):
    """Turns the catalogue into metric families when it is scraped. Never raises."""

    def __init__(
        self,
        catalogue: Catalogue,
        watched: Watched,
        version: str,
        uptime_s: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._watched = watched
        self._version = version
        self._uptime_s = uptime_s

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        build = GaugeMetricFamily(
            f"{_PREFIX}build_info", "Always 1; the version is its label.", labels=["version"]
        )
        build.add_metric([self._version], 1)
        yield build
        yield _gauge("uptime_seconds", "Since the daemon's start.", self._uptime_s())
        yield from map(_counter, self._catalogue.counts)
        yield from map(_histogram, self._catalogue.durations)
        yield from self._tiers()
        yield from self._engines()
        yield _gauge("flights", "Compilations under way.", self._watched.flights())
        yield from self._traffic()
        yield _gauge(
            "quarantined_modules",
            "Modules that this daemon knows to be refused.",
            self._watched.quarantined(),
        )
        yield from self._remote()

    def _tiers(self) -> Iterator[Metric]:
        labels = ["tier"]
        entries = GaugeMetricFamily(f"{_PREFIX}tier_entries", "What the tier holds.", labels=labels)
        size = GaugeMetricFamily(f"{_PREFIX}tier_bytes", "What the tier holds.", labels=labels)
        limit = GaugeMetricFamily(
            f"{_PREFIX}tier_limit_bytes", "What the tier may hold; 0 for no limit.", labels=labels
        )
        evictions = CounterMetricFamily(
            f"{_PREFIX}tier_evictions", "Entries that made room for others.", labels=labels
        )
        for tier in TIERS:
            usage = self._watched.tier(tier)
            entries.add_metric([tier], usage.entries)
            size.add_metric([tier], usage.bytes)
            limit.add_metric([tier], usage.limit_bytes)
            evictions.add_metric([tier], usage.evictions)
        yield from (entries, size, limit, evictions)

    def _engines(self) -> Iterator[Metric]:
        labels = ["engine"]
        workers = GaugeMetricFamily(f"{_PREFIX}workers", "Workers that run.", labels=labels)
        busy = GaugeMetricFamily(f"{_PREFIX}workers_busy", "Workers that compile.", labels=labels)
        queued = GaugeMetricFamily(
            f"{_PREFIX}queue_depth", "Calls that wait for a worker.", labels=labels
        )
        background = GaugeMetricFamily(
            f"{_PREFIX}queue_background", "Those of them that nobody waits for.", labels=labels
        )
        callers = GaugeMetricFamily(
            f"{_PREFIX}queue_callers", "Callers whose jobs take turns.", labels=labels
        )
        size = GaugeMetricFamily(
            f"{_PREFIX}queue_bytes", "The modules that wait for a worker.", labels=labels
        )
        wait = GaugeMetricFamily(
            f"{_PREFIX}queue_expected_wait_seconds",
            "How long one more caller would wait for a worker.",
            labels=labels,
        )
        for engine_id in self._catalogue.engine_ids:
            usage = self._watched.engine(engine_id)
            workers.add_metric([engine_id], usage.workers)
            busy.add_metric([engine_id], usage.busy)
            queued.add_metric([engine_id], usage.queued)
            background.add_metric([engine_id], usage.queued_in_background)
            callers.add_metric([engine_id], usage.queued_callers)
            size.add_metric([engine_id], usage.queued_bytes)
            wait.add_metric([engine_id], usage.expected_wait_s)
        yield from (workers, busy, queued, background, callers, size, wait)

    def _traffic(self) -> Iterator[Metric]:
        usage = self._watched.traffic()
        yield _gauge("calls", "Calls under way.", usage.calls)
        yield _gauge(
            "receive_bytes",
            "Requests in memory, those that arrive slowly counted in full.",
            usage.receive_bytes,
        )
        yield _gauge(
            "send_bytes", "Copies of answers that callers have not read.", usage.send_bytes
        )
        yield _gauge("send_pinned_bytes", "Artifacts that are on their way.", usage.pinned_bytes)

    def _remote(self) -> Iterator[Metric]:
        status = self._watched.remote()
        yield _gauge("redis_up", "Whether the Redis tier answers.", status.up)
        yield _gauge(
            "redis_pending_writes", "Writes that wait to go to Redis.", status.pending_writes
        )
        dropped = CounterMetricFamily(
            f"{_PREFIX}redis_dropped_writes", "Writes to Redis that were given up."
        )
        dropped.add_metric([], status.dropped_writes)
        yield dropped


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, help_text, value=float(value))


def _counter(family: Family[Count]) -> Metric:
    metric = CounterMetricFamily(_PREFIX + family.name, family.help_text, labels=family.labels)
    for values, count in family.all():
        metric.add_metric(values, count.value)
    return metric


def _histogram(family: Family[Window]) -> Metric:
    metric = HistogramMetricFamily(_PREFIX + family.name, family.help_text, labels=family.labels)
    for values, window in family.all():
        buckets, sum_s = window.buckets()
        metric.add_metric(values, [(_end(bound), n) for bound, n in buckets], sum_s)
    return metric


def _end(bound: float) -> str:
    return "+Inf" if bound == math.inf else str(bound)
