"""The Recorder: every count and duration of the daemon, for Prometheus and for Stats."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector

from wasmkilnd.model import Origin
from wasmkilnd.telemetry.metrics.catalogue import ERROR, TIERS, Catalogue
from wasmkilnd.telemetry.metrics.exposition import Exposition
from wasmkilnd.telemetry.metrics.snapshot import (
    CompileSnapshot,
    EngineSnapshot,
    Snapshot,
    TierSnapshot,
)
from wasmkilnd.telemetry.metrics.watched import Watched


class Metrics(Watched):
    """Takes note of what happens; see :class:`wasmkilnd.ports.Recorder` for the promises.

    ``registry`` is what /metrics serves, ``snapshot`` what Stats answers; both read
    the same series. Engines and RPC methods are made known beforehand, and then
    stand at zero; what is not known is counted under ``other``.
    """

    def __init__(self, version: str, methods: Iterable[str] = ()) -> None:
        """Begin at zero. ``methods`` are the RPCs' full names: ``/package.Service/Method``."""
        super().__init__()
        self._version = version
        self._started_at_s = time.time()
        self._started = time.monotonic()
        self._catalogue = Catalogue()
        # Resolved once, since these are counted on the path of every call.
        self._lookups = self._catalogue.lookups
        self._lookup_durations = self._catalogue.lookup_durations
        self._stores = self._catalogue.stores
        self._store_durations = self._catalogue.store_durations
        self._rpcs = self._catalogue.rpcs
        self._rpc_durations = self._catalogue.rpc_durations
        self._served = {origin: self._catalogue.served.at(origin.value) for origin in Origin}
        self._joined = self._catalogue.flights_joined.at()
        self._sent = self._catalogue.sent_bytes.at()
        for method in methods:
            self._catalogue.add_method(method)

        self.registry = CollectorRegistry()
        self.registry.register(Exposition(self._catalogue, self, version, lambda: self.uptime_s))
        ProcessCollector(registry=self.registry)

    def add_engine(self, engine_id: str) -> None:
        """Make an engine known. Doing so again changes nothing."""
        self._catalogue.add_engine(engine_id)

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.tier_lookup`."""
        self._lookups.at(tier, what, outcome).add()
        # A failure's time is a timeout, or nothing at all while a breaker is open: it says
        # nothing of the tier's speed, and would hide it.
        if outcome != ERROR:
            self._lookup_durations.at(tier, what).add(seconds)

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.tier_store`."""
        self._stores.at(tier, outcome).add()
        if outcome != ERROR:
            self._store_durations.at(tier).add(seconds)

    def value_rejected(self, tier: str, cause: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.value_rejected`."""
        self._catalogue.rejected.at(tier, cause).add()

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.compiled`."""
        labels = self._catalogue.compiles.known(engine_id, outcome)
        self._catalogue.compiles.at(*labels).add()
        self._catalogue.compile_durations.add(*labels).add(seconds)
        self._catalogue.queue_waits.at(engine_id).add(queued_s)

    def served(self, origin: Origin) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.served`."""
        self._served[origin].add()

    def fleet_turn(self, outcome: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.fleet_turn`."""
        self._catalogue.fleet_turns.at(outcome).add()

    def quarantine_refused(self) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.quarantine_refused`."""
        self._catalogue.quarantine_refused.at().add()

    def flight_joined(self) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.flight_joined`."""
        self._joined.add()

    def abandoned(self, engine_id: str, stage: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.abandoned`."""
        self._catalogue.abandoned.at(engine_id, stage).add()

    def worker_replaced(self, engine_id: str) -> None:
        """See :meth:`wasmkilnd.ports.Recorder.worker_replaced`."""
        self._catalogue.workers_replaced.at(engine_id).add()

    def rpc(self, method: str, code: str, seconds: float, limit: str = "") -> None:
        """An RPC ended. ``method`` is its full name, ``code`` a gRPC code's name in capitals.

        ``limit`` names the one that the call met, of those that protect other callers.
        """
        self._rpcs.at(method, code).add()
        self._rpc_durations.at(method).add(seconds)
        if limit:
            self._catalogue.refused.at(limit).add()

    def connections_closed(self, cause: str, count: int) -> None:
        """The daemon closed ``count`` connections for the others' sake."""
        self._catalogue.connections_closed.at(cause).add(count)

    def bytes_sent(self, size_bytes: int) -> None:
        """Artifact bytes went to a caller."""
        self._sent.add(size_bytes)

    @property
    def uptime_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._started

    def snapshot(self) -> Snapshot:
        """Return what Stats answers; never raises."""
        catalogue = self._catalogue
        compiles = (
            CompileSnapshot(engine_id, outcome, window.summary())
            for (engine_id, outcome), window in catalogue.compile_durations.all()
        )
        engines = (
            EngineSnapshot(
                engine_id,
                self.engine(engine_id),
                catalogue.workers_replaced.at(engine_id).value,
                catalogue.queue_waits.at(engine_id).summary(),
            )
            for engine_id in catalogue.engine_ids
        )
        return Snapshot(
            version=self._version,
            started_at_s=self._started_at_s,
            uptime_s=self.uptime_s,
            tiers=tuple(self._tier_snapshot(tier) for tier in TIERS),
            compiles=tuple(sorted(compiles, key=lambda each: (each.engine_id, each.outcome))),
            engines=tuple(engines),
            flights=self.flights(),
            quarantined=self.quarantined(),
            flights_joined=self._joined.value,
            served={origin: count.value for origin, count in self._served.items()},
            rejected=sum(count.value for _, count in catalogue.rejected.all()),
            remote=self.remote(),
        )

    def _tier_snapshot(self, tier: str) -> TierSnapshot:
        def lookups(what: str, outcome: str) -> int:
            return self._lookups.at(tier, what, outcome).value

        failed = lookups("artifact", ERROR) + lookups("module", ERROR)
        failed += self._stores.at(tier, ERROR).value
        failed += sum(
            count.value for (where, _), count in self._catalogue.rejected.all() if where == tier
        )
        return TierSnapshot(
            tier=tier,
            usage=self.tier(tier),
            hits=lookups("artifact", "hit"),
            misses=lookups("artifact", "miss"),
            module_hits=lookups("module", "hit"),
            module_misses=lookups("module", "miss"),
            errors=failed,
            get_latency=self._lookup_durations.at(tier, "artifact").summary(),
            put_latency=self._store_durations.at(tier).summary(),
        )
