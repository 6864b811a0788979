"""Every counter and histogram of the daemon: its name, meaning, labels and buckets."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from wasmkilnd.errors import Reason
from wasmkilnd.model import Origin, RejectionCause
from wasmkilnd.telemetry.metrics.series import OTHER, Bounded, Latency

S = TypeVar("S")

PREFIX: Final = "wasmkiln_"
TIERS: Final = ("memory", "host_store", "redis")
STORED: Final = ("host_store", "redis")
"""The tiers whose values others may have changed, so that the daemon verifies them."""
QUOTAS: Final = ("calls_per_minute", "compiles_per_minute", "stored_bytes_per_hour")
OK: Final = "ok"
ERROR: Final = "error"
FAILED: Final = "failed"
_WHAT = ("artifact", "module")
_OUTCOMES = (OK, *(reason.value.lower() for reason in Reason))
_GRPC_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
# The limits that protect callers from each other; see errors.py.
_LIMITS = ("queue", "calls", "receive", "send", "descriptors")
_BEHIND_OUTCOMES = ("compiled", "found", "failed", "dropped")
_FLEET_OUTCOMES = ("taken", "made", "failed", "late", "alone")
_ABANDONED_STAGES = ("queued",)
RELOADED: Final = ("settings", "files")

# All in seconds, and multiples of 1, 2.5 and 5.
# A memory hit takes microseconds, Redis 0.5 to 60 ms by size; its timeout is a second.
_TIER_BUCKETS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
# Half of the real modules compile within 0.1 s, nine of ten within 1 s; the limit is 30 s.
_COMPILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From a memory hit of 0.5 ms to a cold compile.
_RPC_BUCKETS = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Catalogue:
    """The metrics that parts of the daemon count in.

    A series whose label values are known beforehand exists at zero from the start. Engines and
    RPC methods become known with ``add_engine`` and ``add_method``; until then, a metric with
    such a label has no series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register every metric with ``registry``, in the order in which /metrics shows them."""
        self._registry = registry
        self.lookups = self._counters(
            "tier_lookups",
            "Look-ups in a cache tier.",
            tier=TIERS,
            what=_WHAT,
            outcome=("hit", "miss", ERROR),
        )
        self.stores = self._counters(
            "tier_stores",
            "Writes of artifacts and modules to a tier.",
            tier=TIERS,
            outcome=(OK, ERROR),
        )
        self.rejected = self._counters(
            "values_rejected",
            "Stored values that did not verify, so that the daemon deleted them.",
            tier=STORED,
            cause=(*(cause.value for cause in RejectionCause), OTHER),
        )
        self.rejected.add(TIERS[0], OTHER)
        self.compiles = self._counters(
            "compiles", "Compilations that ended.", engine=(), outcome=_OUTCOMES
        )
        self.workers_replaced = self._counters(
            "workers_replaced", "Workers that died, so that the daemon replaced them.", engine=()
        )
        self.abandoned = self._counters(
            "abandoned",
            "Jobs that the daemon ended because no caller waited for them.",
            engine=(),
            stage=_ABANDONED_STAGES,
        )
        self.refused = self._counters(
            "refused",
            "Calls refused because of a limit that protects other callers.",
            limit=_LIMITS,
        )
        self.served = self._counters(
            "served",
            "Compile calls answered, by the origin of the artifact.",
            origin=[origin.value for origin in Origin],
        )
        self.flights_joined = self._counter(
            "flights_joined", "Calls that shared another call's compilation."
        )
        self.compiled_behind = self._counters(
            "compiled_behind",
            "Optimised compiles behind a fast artifact, by how they ended.",
            outcome=_BEHIND_OUTCOMES,
        )
        self.fleet_turns = self._counters(
            "fleet_turns",
            "Claims to compile among the daemons on one Redis, by how they ended.",
            outcome=_FLEET_OUTCOMES,
        )
        self.quarantine_refused = self._counter(
            "quarantine_refused",
            "Compiles refused because the module is in quarantine.",
        )
        self.rpcs = self._counters("rpcs", "RPCs that ended.", method=(), code=_GRPC_CODES)
        self.sent_bytes = self._counter("sent_bytes", "Artifact bytes sent to callers.")
        self.reloads = self._counters(
            "reloads",
            "Times that the daemon read its settings, or changed files, again.",
            what=RELOADED,
            outcome=(OK, FAILED),
        )
        self.audit_lost = self._counter(
            "audit_lost", "Lines of the audit that could not be written."
        )

        self.lookup_durations = self._latencies(
            "tier_lookup_duration_seconds",
            "Duration of look-ups that ended with a hit or a miss.",
            _TIER_BUCKETS,
            tier=TIERS,
            what=_WHAT,
        )
        self.store_durations = self._latencies(
            "tier_store_duration_seconds",
            "Duration of writes that succeeded.",
            _TIER_BUCKETS,
            tier=TIERS,
        )
        # A histogram is 15 lines long: other outcomes than ``ok`` get one when they happen.
        self.compile_durations = self._latencies(
            "compile_duration_seconds",
            "How long the engine worked on a compilation.",
            _COMPILE_BUCKETS,
            engine=(),
            outcome=(OK,),
        )
        self.queue_waits = self._histograms(
            "queue_wait_seconds",
            "How long a compilation waited for a worker.",
            _QUEUE_BUCKETS,
            engine=(),
        )
        self.rpc_durations = self._histograms(
            "rpc_duration_seconds",
            "How long an RPC took, until its last byte was sent.",
            _RPC_BUCKETS,
            method=(),
        )

    def add_engine(self, engine_id: str) -> None:
        """Make an engine known. Doing so again changes nothing."""
        for outcome in _OUTCOMES:
            self.compiles.add(engine_id, outcome)
        self.compile_durations.add(engine_id, OK)
        self.queue_waits.add(engine_id)
        self.workers_replaced.add(engine_id)
        for stage in _ABANDONED_STAGES:
            self.abandoned.add(engine_id, stage)

    def add_method(self, method: str) -> None:
        """Make an RPC known by its full name. Doing so again changes nothing."""
        self.rpc_durations.add(method)
        for code in _GRPC_CODES:
            self.rpcs.add(method, code)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(PREFIX + name, help_text, registry=self._registry)

    def _counters(
        self, name: str, help_text: str, room: int = 0, **labels: Collection[str]
    ) -> Bounded[Counter]:
        """Return a counter with ``labels``: their names, and the values that are known now."""
        counter = Counter(PREFIX + name, help_text, list(labels), registry=self._registry)
        return _at_zero(Bounded(counter.labels, room), labels)

    def _histograms(
        self, name: str, help_text: str, buckets: tuple[float, ...], **labels: Collection[str]
    ) -> Bounded[Histogram]:
        """Return a histogram with ``labels``, as ``_counters``."""
        histogram = self._histogram(name, help_text, buckets, labels)
        return _at_zero(Bounded(histogram.labels), labels)

    def _latencies(
        self, name: str, help_text: str, buckets: tuple[float, ...], **labels: Collection[str]
    ) -> Bounded[Latency]:
        """Return a histogram with ``labels``, as ``_counters``, and percentiles for Stats."""
        histogram = self._histogram(name, help_text, buckets, labels)
        return _at_zero(Bounded(lambda *values: Latency(histogram.labels(*values))), labels)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], labels: Iterable[str]
    ) -> Histogram:
        return Histogram(PREFIX + name, help_text, labels, registry=self._registry, buckets=buckets)


def _at_zero(series: Bounded[S], labels: Mapping[str, Collection[str]]) -> Bounded[S]:
    for values in itertools.product(*labels.values()):
        series.add(*values)
    return series
