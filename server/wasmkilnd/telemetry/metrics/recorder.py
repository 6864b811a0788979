"""Where the parts of the daemon record what happens, for Prometheus and for Stats."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Gauge, Metric, ProcessCollector

from wasmkilnd.model import Origin
from wasmkilnd.ports import Recorder
from wasmkilnd.telemetry.metrics.catalogue import ERROR, FAILED, OK, PREFIX, RELOADED, Catalogue
from wasmkilnd.telemetry.metrics.gauges import Gauges
from wasmkilnd.telemetry.metrics.readings import EngineUsage, ReloadStatus
from wasmkilnd.telemetry.metrics.recent import RecentCompiles


class Metrics(Recorder):
    """Counts what happens; see ``Recorder`` for the promises.

    /metrics serves ``registry``; Stats reads ``catalogue`` and ``gauges``. The daemon makes
    engines and RPC methods known beforehand, so that they stand at zero; others count under
    ``other``. Two objects share nothing.
    """

    def __init__(self, version: str, methods: Iterable[str] = ()) -> None:
        """Begin at zero. ``methods`` are the RPCs' full names: ``/package.Service/Method``."""
        self.version = version
        self.started_at_s = time.time()
        self._started = time.monotonic()
        self.registry = _Registry()
        build = Gauge(
            f"{PREFIX}build_info",
            "Always 1; the version is its label.",
            ["version"],
            registry=self.registry,
        )
        build.labels(version).set(1)
        uptime = Gauge(
            f"{PREFIX}uptime_seconds", "Since the daemon's start.", registry=self.registry
        )
        uptime.set_function(lambda: self.uptime_s)
        self.catalogue = Catalogue(self.registry)
        self.gauges = Gauges()
        self.recent = RecentCompiles()
        # What is in force at first was read at the start.
        self._reloads = dict.fromkeys(RELOADED, ReloadStatus(True, self.started_at_s))
        self.gauges.reloads = lambda: self._reloads
        self.registry.register(self.gauges)
        ProcessCollector(registry=self.registry)
        for method in methods:
            self.catalogue.add_method(method)

    def add_engine(self, engine_id: str) -> None:
        """Make an engine known. Doing so again changes nothing."""
        self.catalogue.add_engine(engine_id)
        self.gauges.engines.setdefault(engine_id, EngineUsage)

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.tier_lookup`."""
        self.catalogue.lookups.at(tier, what, outcome).inc()
        # A failure takes the timeout, or no time at all while a breaker is open. Neither says
        # how fast the tier is.
        if outcome != ERROR:
            self.catalogue.lookup_durations.at(tier, what).add(seconds)

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.tier_store`."""
        self.catalogue.stores.at(tier, outcome).inc()
        if outcome != ERROR:
            self.catalogue.store_durations.at(tier).add(seconds)

    def value_rejected(self, tier: str, cause: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.value_rejected`."""
        self.catalogue.rejected.at(tier, cause).inc()

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.compiled`."""
        labels = self.catalogue.compiles.known(engine_id, outcome)
        self.catalogue.compiles.at(*labels).inc()
        self.catalogue.compile_durations.add(*labels).add(seconds)
        self.catalogue.queue_waits.at(engine_id).observe(queued_s)

    def served(self, origin: Origin) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.served`."""
        self.catalogue.served.at(origin.value).inc()

    def compiled_behind(self, outcome: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.compiled_behind`."""
        self.catalogue.compiled_behind.at(outcome).inc()

    def fleet_turn(self, outcome: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.fleet_turn`."""
        self.catalogue.fleet_turns.at(outcome).inc()

    def quarantine_refused(self) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.quarantine_refused`."""
        self.catalogue.quarantine_refused.inc()

    def flight_joined(self) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.flight_joined`."""
        self.catalogue.flights_joined.inc()

    def abandoned(self, engine_id: str, stage: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.abandoned`."""
        self.catalogue.abandoned.at(engine_id, stage).inc()

    def worker_replaced(self, engine_id: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.worker_replaced`."""
        self.catalogue.workers_replaced.at(engine_id).inc()

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.compile_ended`."""
        self.recent.add(module, engine, origin, reason, took_s)

    def rpc(self, method: str, code: str, seconds: float, limit: str = "") -> None:
        """Record that an RPC ended.

        ``method`` is its full name, ``code`` a gRPC code's name in capitals, and ``limit`` the
        limit that refused it, if one did: see ``refused`` in the catalogue.
        """
        self.catalogue.rpcs.at(method, code).inc()
        self.catalogue.rpc_durations.at(method).observe(seconds)
        if limit:
            self.catalogue.refused.at(limit).inc()

    def bytes_sent(self, size_bytes: int) -> None:
        """Record that artifact bytes went to a caller."""
        self.catalogue.sent_bytes.inc(size_bytes)

    def reloaded(self, what: str, *, succeeded: bool) -> None:
        """Record that the daemon read its ``settings``, or changed ``files``, again."""
        self.catalogue.reloads.at(what, OK if succeeded else FAILED).inc()
        since_s = time.time() if succeeded else self._reloads[what].succeeded_at_s
        self._reloads[what] = ReloadStatus(succeeded, since_s)

    def audit_lost(self, count: int) -> None:
        """Record that lines of the audit could not be written."""
        self.catalogue.audit_lost.inc(count)

    @property
    def uptime_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._started


class _Registry(CollectorRegistry):
    """Leaves out each series' time of creation, which prometheus_client would add as a sample.

    The library can switch that off only for the whole process, which is not the daemon's alone
    in tests.
    """

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        for metric in super().collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric
