"""The metrics: what the daemon counts, for Prometheus (/metrics), Stats and the status page.

``_TABLE`` names every metric, all of them ``wasmkiln_…``, and the question that each answers:

=============================================  =========================================
``served``, ``flights``                        where do artifacts come from: hit ratio
``tier_*``, ``values_rejected``, ``redis_*``   what do the caches hold, how fast are they
``compiles``, ``compile_duration``             how many compiles fail, how long do they take
``queue_*``, ``workers*``, ``abandoned``       are there enough workers
``jobs_*``                                     is there enough memory for jobs
``rpcs``, ``rpc_duration``, ``sent_bytes``     what do callers get, and how fast
``calls``, ``receive_*``, ``send_*``           how much memory do calls hold
``refused``                                    which limits protect callers from others
``quota_*``                                    who is near to a quota, and which quotas refuse
``fleet_turns``, ``quarantine*``               do daemons share work and failures
``ready``, ``engine_state``, ``isolation_*``   what is served, and how are jobs confined
``reloads``, ``last_reload_*``, ``tls_*``      do changed settings and files work
=============================================  =========================================

``Metrics`` counts some of them, as other parts call it. The others are what those parts know
anyway: they say how it is read in ``Metrics.gauges``, and it is read when somebody asks.

Names, labels and buckets are a contract: tests/unit/telemetry/metrics.txt lists them, and
docs/reference/metrics.md, deploy/prometheus-alerts.yml and deploy/grafana/ use them. To add a
metric, add its row to ``_TABLE``. Then count it by ``Metrics.count``, with the label values that
are known in ``_VALUES``, or add a field to ``Readings``. What an alert watches has to stand at zero
from the start: increase() sees no event that makes its own series.

A look-up in a tier, a write and a rejected value are steps of a traced call, too (``tracing``).

Promises: recording takes about a microsecond and never raises; no label grows with what callers
send (unexpected values count under ``other``); two daemons in one process share nothing.
"""

from __future__ import annotations

import itertools
import re
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
import structlog
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, core
from prometheus_client.registry import Collector

from wasmkilnd import model
from wasmkilnd.errors import Reason
from wasmkilnd.quota import KINDS
from wasmkilnd.telemetry import tracing

Labels: TypeAlias = tuple[str, ...]
# Of each: the name of a histogram, how many of the labels it has, and a duration.
_Took: TypeAlias = Iterable[tuple[str, int, float]]

TIERS: Final = ("memory", "host_store", "redis", "object_store")
# The label of everything that was not expected.
OTHER: Final = "other"
# How many of the last durations the percentiles are taken over.
SAMPLES: Final = 1024
# How many records count together.
_TOGETHER = 64
# How many compiles the list of recent ones has.
KEPT: Final = 50
# Callers choose the digest and the engine of a call that fails; no more of them is kept.
_MAX_TEXT = 80

# Of each metric: name, type, labels (with values that are known beforehand), where its values come
# from, HELP. ``counted`` are kept here; of what is read, this is the way from ``Readings`` to it;
# ``-`` is what ``_worked_out`` makes. Of a histogram, which is 15 lines long, other outcomes than
# ``ok`` begin when they happen.
_TABLE = """
build_info         gauge   version           -       Always 1, with the version.
uptime_seconds     gauge   -                 -       Since the daemon's start.
tier_lookups counter tier,what,outcome=hit|miss|error counted Look-ups in a cache tier.
tier_stores  counter tier,outcome=ok|error|too_large  counted Artifacts and modules written to it.
values_rejected    counter tier,cause          counted Values that did not verify.
compiles           counter engine,outcome      counted Compilations that ended.
workers_replaced   counter engine              counted Workers that died and were replaced.
jobs_run_again counter memory=limit|retry,outcome=ok|failed counted Jobs run again with more memory.
abandoned          counter engine,stage=queued counted Jobs dropped: no caller waited any more.
refused counter limit=queue|calls|receive|send|descriptors|uploads counted Calls refused by it.
served             counter origin              counted Compile calls answered, by artifact's origin.
flights_joined     counter -                   counted Calls that shared another call's compilation.
compiled_behind counter outcome=compiled|found|failed|dropped counted Compiles behind fast code.
fleet_turns counter outcome=taken|made|failed|late|alone counted Claims to compile among daemons.
quarantine_refused counter -                   counted Compiles refused: it is in quarantine.
rpcs               counter method,code         counted RPCs that ended.
sent_bytes         counter -                   counted Artifact bytes sent to callers.
reloads counter what=settings|files,outcome=ok|failed counted Times that they were read again.
audit_lost         counter -                   counted Lines of the audit that were not written.
tier_lookup_duration_seconds histogram tier,what         counted Of look-ups that hit or missed.
tier_store_duration_seconds  histogram tier              counted Of writes that succeeded.
compile_duration_seconds     histogram engine,outcome=ok counted How long the engine worked.
queue_wait_seconds           histogram engine            counted How long compiles waited.
rpc_duration_seconds         histogram method            counted How long RPCs took.
ready              gauge   -    ready                Whether the daemon serves calls.
tier_entries       gauge   tier tiers.entries        Entries that the tier holds.
tier_bytes         gauge   tier tiers.bytes          Bytes that the tier holds.
tier_limit_bytes   gauge   tier tiers.limit_bytes    Bytes that it may hold; 0 for no limit.
tier_evictions     counter tier tiers.evictions      Entries dropped to make room for others.
pinned_entries     gauge   tier tiers.pinned_entries Entries that the tier keeps for pins.
pinned_entry_bytes gauge   tier tiers.pinned_bytes   Bytes of entries that it keeps for pins.
pinned_let_go      counter tier tiers.let_go         Pinned entries that may be evicted again.
tier_configured    gauge   tier -                    Whether the settings switch the tier on.
redis_up                  gauge   - remote.up             Whether the Redis tier answers.
redis_pending_writes      gauge   - remote.pending_writes Writes that wait to go to Redis.
redis_dropped_writes      counter - remote.dropped_writes Writes to Redis that were given up.
object_store_up             gauge   - objects.up             Whether the object store answers.
object_store_pending_writes gauge   - objects.pending_writes Writes that wait to go to it.
object_store_dropped_writes counter - objects.dropped_writes Writes to it that were given up.
object_store_strangers      gauge   - objects.strangers      Values there of unknown keys.
host_store_up             gauge   - host.up               Whether the host store can be used.
host_store_pending_writes gauge   - host.pending_writes   Writes that wait to go to it.
host_store_dropped_writes counter - host.dropped_writes   Writes to it that were given up.
workers                     gauge engine engines.workers              Worker processes that run.
workers_busy                gauge engine engines.busy                 Workers that run a job.
queue_depth                 gauge engine engines.queued               Jobs that wait for a worker.
queue_background            gauge engine engines.queued_in_background Background jobs that wait.
queue_for_memory            gauge engine engines.queued_for_memory    Jobs waiting for memory only.
queue_callers               gauge engine engines.queued_callers       Callers that share the queue.
queue_bytes                 gauge engine engines.queued_bytes         Size of the modules that wait.
queue_expected_wait_seconds gauge engine engines.expected_wait_s      What one more would wait.
jobs_memory_reserved_bytes gauge - jobs_reserved_bytes Memory that running jobs may use.
jobs_memory_limit_bytes    gauge - jobs_limit_bytes    Memory that all jobs together may use.
jobs_memory_events counter event jobs_memory_events Times that their control group met its limit.
engine_state             gauge   engine,state -               1 for its state, 0 for the other.
engine_advisories        gauge   engine       advisories      Known vulnerabilities of its code.
isolation_confined       gauge   engine       isolation.holds Whether no break-out succeeded.
isolation_layer          gauge   engine,layer -               1 in force, 0.5 in part, 0 not.
engine_warm_up_artifacts gauge   engine,state -               Compiled before names move.
quota_used_ratio         gauge   quota        -               The largest part that anybody uses.
quota_refused            counter quota        -               Calls refused because of a quota.
flights             gauge - flights               Compilations and validations under way or waiting.
calls               gauge - traffic.calls         Calls under way.
receive_bytes       gauge - traffic.receive_bytes Requests in memory; a slow one counts in full.
send_bytes          gauge - traffic.send_bytes    Bytes of responses that are not read yet.
send_pinned_bytes   gauge - traffic.pinned_bytes  Bytes of artifacts that are being sent.
uploads             gauge - uploads               Uploads that have not ended.
upload_bytes        gauge - upload_bytes          Bytes that those have when they are whole.
quarantined_modules gauge - quarantined           Modules in quarantine that are known here.
pins                gauge - pins                  Modules that are pinned.
tls_not_after_seconds gauge   file tls_not_after_s   When a TLS file expires, since 1970.
tls_reload_failures   counter -    tls_failures      Changed TLS files that were of no use.
jwt_keys_fetched      gauge   -    jwt_keys_fetched  Whether the last fetch worked, if there is one.
log_lines_dropped     counter -    log_lines_dropped Lines that could not be written.
last_reload_successful                gauge what - Whether it could be applied.
last_reload_success_timestamp_seconds gauge what - When what is in force was read.
"""
_ROWS = [
    (name, kind, re.findall(r"(\w+)(?:=([\w|]+))?", labels), source, text)
    for row in _TABLE.strip().splitlines()
    for name, kind, labels, source, text in [row.split(None, 4)]
]
# Values that the table has not. Engines and methods become known later.
_VALUES: Mapping[str, Collection[str]] = {
    "tier": TIERS,
    "what": ("artifact", "module"),
    "origin": [origin.value for origin in model.Origin],
    "cause": [*(cause.value for cause in model.RejectionCause), OTHER],
    "code": [code.name for code in grpc.StatusCode],
    "outcome": ("ok", *(reason.value.lower() for reason in Reason)),
}
# In milliseconds, and multiples of 1, 2.5 and 5.
# A memory hit takes microseconds, Redis 0.5 to 60 ms by size; its timeout is a second.
_TIER_MS = 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000
# Half of the real modules compile within 0.1 s, nine of ten within 1 s; the limit is 30 s.
_COMPILE_MS = 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000
_QUEUE_MS = 1, 5, 10, 50, 100, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000
# From a memory hit of 0.5 ms to a cold compile.
_RPC_MS = 0.25, 0.5, 1, 2.5, *_COMPILE_MS
_BUCKETS_MS: Mapping[str, Sequence[float]] = {
    "tier_lookup_duration_seconds": _TIER_MS,
    "tier_store_duration_seconds": _TIER_MS,
    "compile_duration_seconds": _COMPILE_MS,
    "queue_wait_seconds": _QUEUE_MS,
    "rpc_duration_seconds": _RPC_MS,
}
_IN_FORCE = {"enforced": 1.0, "partial": 0.5, "missing": 0.0}


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """A series of durations in five numbers, in seconds. Count and sum are since the start."""

    count: int = 0
    sum_s: float = 0.0
    p50_s: float = 0.0
    p90_s: float = 0.0
    p99_s: float = 0.0


class Latency:
    """A series of durations: buckets for Prometheus, the last 1,024 for Stats.

    One thread at a time adds; any may read, since each field is copied at once.
    """

    __slots__ = ("_counts", "_ends", "_samples", "_sum_s")

    def __init__(self, ends: Sequence[float]) -> None:
        """Begin empty. ``ends`` are the upper ends of the buckets, which include them."""
        self._ends, self._counts, self._sum_s = ends, [0] * (len(ends) + 1), 0.0
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def add(self, seconds: float) -> None:
        """Take one duration."""
        self._counts[bisect_left(self._ends, seconds)] += 1
        self._sum_s += seconds
        self._samples.append(seconds)

    def summary(self) -> LatencySummary:
        """Return count and sum, and percentiles by nearest rank."""
        count, sum_s, samples = sum(self._counts), self._sum_s, sorted(self._samples)
        # Integers, since ceil(0.99 * 100) would be at the mercy of rounding.
        ranks = (samples[-(-each * len(samples) // 100) - 1] for each in (50, 90, 99) if samples)
        return LatencySummary(count, sum_s, *ranks)

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the upper end of each bucket with the durations up to it, and the sum of all."""
        counts, sum_s = itertools.accumulate(self._counts), self._sum_s
        return list(zip((*map(str, self._ends), "+Inf"), counts, strict=True)), sum_s


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What an engine's pool is doing now."""

    workers: int = 0
    busy: int = 0
    # Jobs that wait for a worker.
    queued: int = 0
    # Those of them that have a worker, and wait for memory alone.
    queued_for_memory: int = 0
    # Those of them that no caller waits for.
    queued_in_background: int = 0
    # Callers whose jobs share the queue.
    queued_callers: int = 0
    # The size of the modules that wait.
    queued_bytes: int = 0
    # How long one more caller would wait.
    expected_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TrafficUsage:
    """What calls hold now."""

    calls: int = 0
    # Requests, those that arrive slowly counted in full.
    receive_bytes: int = 0
    # Bytes of responses that callers have not read yet.
    send_bytes: int = 0
    # Bytes of artifacts held in memory while they are sent.
    pinned_bytes: int = 0


class RecentCompile(NamedTuple):
    """How a compile ended, or several of one module that ended alike, one after the other."""

    module: str
    engine: str
    # Where the artifact came from; empty where there is none.
    origin: str
    # Why there is no artifact; empty where there is one.
    reason: str
    # When the last of them ended, in seconds since 1970.
    ended_s: float
    # How long the last of them took, its wait in the queue included.
    took_s: float
    times: int


_UNUSED, _NOT_YET = dict.fromkeys(KINDS, (0.0, 0)), model.RemoteStatus("none", up=False)


@dataclass(frozen=True, slots=True)
class Readings:
    """What other parts say of themselves, at about one moment: nothing before they start."""

    tiers: Mapping[str, model.TierUsage]
    # In the order in which the engines were added.
    engines: Mapping[str, EngineUsage]
    # Memory: what the jobs that run have reserved, and all may reserve.
    jobs_reserved_bytes: int = 0
    jobs_limit_bytes: int = 0
    # What the kernel counted in their control group, by its words.
    jobs_memory_events: Mapping[str, int] = field(default_factory=dict)
    flights: int = 0
    quarantined: int = 0
    pins: int = 0
    traffic: TrafficUsage = TrafficUsage()
    uploads: int = 0
    upload_bytes: int = 0
    remote: model.RemoteStatus = _NOT_YET
    objects: model.RemoteStatus = _NOT_YET
    host: model.RemoteStatus = _NOT_YET
    # By kind: the largest part of a limit that an identity uses, and all refusals.
    quotas: Mapping[str, tuple[float, int]] = field(default_factory=lambda: _UNUSED)
    # When each file of TLS that is in force expires, by ``cert`` and ``client_ca``.
    tls_not_after_s: Mapping[str, float] = field(default_factory=dict)
    # How often changed files of TLS could not be used.
    tls_failures: int = 0
    jwt_keys_fetched: bool = True
    warm_ups: Sequence[model.EngineWarmUp] = ()
    # By engine that is installed: whether it is served.
    engine_states: Mapping[str, bool] = field(default_factory=dict)
    # By engine that is served, how many advisories concern it.
    advisories: Mapping[str, int] = field(default_factory=dict)
    # By engine, how its least confined worker is confined.
    isolation: Mapping[str, model.Isolation] = field(default_factory=dict)
    # Whether the daemon serves calls.
    ready: bool = False
    # Since the start.
    log_lines_dropped: int = 0


class Gauges(SimpleNamespace):
    """The sources: functions that return a field of ``Readings``, each under the field's name.

    ``tiers`` and ``engines`` have a function for each. ``app`` sets them as the parts start.
    """

    engine_states: Callable[[], Mapping[str, bool]]

    def read(self) -> Readings:
        """Return what every source returns now; nothing of one that fails. Never raises."""
        tiers = {tier: _read(source, model.TierUsage()) for tier, source in self.tiers.items()}
        engines = {name: _read(source, EngineUsage()) for name, source in self.engines.items()}
        others = {name: _read(x, None) for name, x in vars(self).items() if callable(x)}
        return Readings(tiers, engines, **{name: x for name, x in others.items() if x is not None})


def _read(source: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return source()
    except Exception as error:  # one broken part must not cost the whole page
        structlog.get_logger().warning("cannot read a metric", error=repr(error))
        return otherwise


class Metrics(Collector):
    """Counts what happens: the other parts call it. Two objects share nothing.

    Safe for use from any thread. A method that records returns at once and never raises. Series
    whose label values are known beforehand stand at zero from the start; the daemon makes engines
    and RPC methods known. What is not known counts under ``other``.
    """

    def __init__(
        self, version: str, methods: Iterable[str] = (), whole: Metrics | None = None
    ) -> None:
        """Begin at zero. ``methods`` are the RPCs' full names: ``/package.Service/Method``.

        Those of one namespace count in those of the ``whole`` daemon, too.
        """
        self.version, self._whole = version, whole
        self.started_at_s, self._started = time.time(), time.monotonic()
        self._series: dict[str, dict[Labels, Any]] = defaultdict(dict)
        # What was recorded and does not count yet: some together take a fifth of the time.
        self._recorded: deque[tuple[str, Labels, int, _Took]] = deque()
        self._lock = Lock()
        # The last compiles, the newest first.
        self.recent: deque[RecentCompile] = deque(maxlen=KEPT)
        self.gauges = Gauges(tiers=dict.fromkeys(TIERS, model.TierUsage), engines={})
        # What /metrics serves.
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._begin()
        for what in ("settings", "files"):  # What is in force at first was read at the start.
            self.counts["last_reload_successful"][what,] = True
            self.counts["last_reload_success_timestamp_seconds"][what,] = self.started_at_s
        for method in methods:
            self._begin(method=method)

    def add_engine(self, engine_id: str) -> None:
        """Make an engine known. Doing so again changes nothing."""
        self._begin(engine=engine_id)
        if not self._whole:  # Workers are the whole daemon's.
            self.gauges.engines.setdefault(engine_id, EngineUsage)

    def count(self, name: str, *labels: str, by: int = 1, took: _Took = ()) -> None:
        """Count in the series of ``labels``, if those are known, else in that of others.

        Add the durations to the histograms that have the first of these labels.
        """
        self._recorded.append((name, labels, by, took))
        if len(self._recorded) >= _TOGETHER:
            self._add_up()
        if self._whole:
            self._whole.count(name, *labels, by=by, took=took)

    def _add_up(self) -> None:
        """Count what was recorded."""
        with self._lock:
            while self._recorded:
                name, labels, by, took = self._recorded.popleft()
                counts, known = self._series[name], labels
                if labels not in counts:
                    # ("redis", "other") says more than "other" twice.
                    near = (*labels[:-1], OTHER)
                    known = near if near in counts else (OTHER,) * len(labels)
                counts[known] = counts.get(known, 0) + by
                for histogram, first, seconds in took:
                    series, at = self._series[histogram], known[:first]
                    (series.get(at) or series.setdefault(at, _new(histogram))).add(seconds)

    @property
    def counts(self) -> dict[str, dict[Labels, Any]]:
        """The counters, histograms and the gauges that are set, by name and label values."""
        self._add_up()
        return self._series

    def tier_lookup(self, tier: str, what: str, outcome: str, seconds: float) -> None:
        """Record a look-up in a tier.

        ``what`` is ``artifact`` or ``module``; ``outcome`` is ``hit``, ``miss`` or ``error``.
        """
        # A failure takes the timeout, or no time at all while a breaker is open. Neither says
        # how fast the tier is.
        took = () if outcome == "error" else (("tier_lookup_duration_seconds", 2, seconds),)
        self.count("tier_lookups", tier, what, outcome, took=took)
        tracing.tier_step("lookup", tier, outcome, seconds, what=what)

    def tier_store(self, tier: str, outcome: str, seconds: float) -> None:
        """Record a write to a tier; ``outcome`` is ``ok``, ``error`` or ``too_large``."""
        took = (("tier_store_duration_seconds", 1, seconds),) if outcome == "ok" else ()
        self.count("tier_stores", tier, outcome, took=took)
        tracing.tier_step("store", tier, outcome, seconds)

    def value_rejected(self, tier: str, cause: str) -> None:
        """Record that a stored value did not verify.

        ``cause`` is one of a small set.
        """
        self.count("values_rejected", tier, cause)
        tracing.tier_step("reject", tier, cause, 0.0)

    def compiled(self, engine_id: str, outcome: str, seconds: float, queued_s: float) -> None:
        """Record a compilation; ``outcome`` is ``ok`` or an error's reason in lower case."""
        took = ("compile_duration_seconds", 2, seconds), ("queue_wait_seconds", 1, queued_s)
        self.count("compiles", engine_id, outcome, took=took)

    def rpc(self, method: str, code: str, seconds: float, limit: str = "") -> None:
        """Record that an RPC ended.

        ``method`` is its full name, ``code`` a gRPC code's name in capitals, and ``limit`` the
        limit that refused it, if one did: see ``_VALUES``.
        """
        self.count("rpcs", method, code, took=(("rpc_duration_seconds", 1, seconds),))
        if limit:
            self.count("refused", limit)

    def reloaded(self, what: str, *, succeeded: bool) -> None:
        """Record that the daemon read its ``settings``, or changed ``files``, again."""
        self.count("reloads", what, "ok" if succeeded else "failed")
        self.counts["last_reload_successful"][what,] = succeeded
        if succeeded:
            self.counts["last_reload_success_timestamp_seconds"][what,] = time.time()

    def compile_ended(
        self, module: str, engine: str, origin: str, reason: str, took_s: float
    ) -> None:
        """Record how a compile ended, for the list of recent ones; no hit of memory is one.

        ``origin`` is empty for one that failed, ``reason`` for one that did not. ``took_s`` is what
        a caller would have waited. One that ended as the one before it did is counted there, so
        that a caller that tries again and again leaves room for others.
        """
        about = module[:_MAX_TEXT], engine[:_MAX_TEXT], origin, reason
        with self._lock:
            again = bool(self.recent) and self.recent[0][:4] == about
            times = self.recent.popleft().times + 1 if again else 1
            self.recent.appendleft(RecentCompile(*about, time.time(), took_s, times))
        if self._whole:
            self._whole.compile_ended(module, engine, origin, reason, took_s)

    @property
    def uptime_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._started

    @property
    def hit_ratio(self) -> float:
        """The share of answered Compile calls that a tier answered."""
        served: Mapping[Labels, float] = self.counts["served"]
        return sum(served[origin.value,] for origin in model.HITS) / (sum(served.values()) or 1)

    def errors(self, tier: str) -> int:
        """Return how many look-ups and writes of a tier failed, and values were rejected."""
        counts = [*self.counts["tier_lookups"].items(), *self.counts["tier_stores"].items()]
        failed = sum(count for at, count in counts if (at[0], at[-1]) == (tier, "error"))
        rejected = list(self.counts["values_rejected"].items())
        return int(failed + sum(count for at, count in rejected if at[0] == tier))

    def summary(self, name: str, *labels: str) -> LatencySummary:
        """Return the durations of a histogram's series in five numbers."""
        took = self.counts[name].get(labels)
        return took.summary() if took else LatencySummary()

    def figures(self) -> str:
        """Return what is worth a look in a line: ``systemctl status`` shows it."""
        now = self.gauges.read()
        queued = sum(each.queued for each in now.engines.values())
        return (
            f"{len(now.engines)} engine{'' if len(now.engines) == 1 else 's'},"
            f" {now.tiers['memory'].entries:,} entries in memory,"
            f" {self.hit_ratio:.1%} hits, {queued:,} queued"
        )

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as prometheus_client asks for them."""
        now = self.gauges.read()
        found: dict[str, Mapping[Labels, Any]] = {**self.counts, **self._worked_out(now)}
        for name, kind, labels, source, text in _ROWS:
            family_of = getattr(core, f"{kind.capitalize()}MetricFamily")
            family = family_of(f"wasmkiln_{name}", text, labels=[label for label, _ in labels])
            values = found.get(name, {}) if source in ("counted", "-") else _under(now, source)
            for at, value in list(values.items()):
                family.add_metric(at, *(value.buckets() if kind == "histogram" else (value,)))
            yield family

    def _worked_out(self, now: Readings) -> Mapping[str, Mapping[Any, float]]:
        """Return what no field of ``now`` has as it is shown."""
        shared = (now.host, now.remote, now.objects)
        in_use = (True, *(not each.switched_off for each in shared))
        states = now.engine_states.items()
        return {
            "build_info": {(self.version,): 1},
            "uptime_seconds": {(): self.uptime_s},
            "tier_configured": {(tier,): on for tier, on in zip(TIERS, in_use, strict=True)},
            "engine_state": {(engine, "served"): on for engine, on in states}
            | {(engine, "unserved"): not on for engine, on in states},
            "isolation_layer": {
                (engine, layer.name): _IN_FORCE[layer.state.value]
                for engine, found in now.isolation.items()
                for layer in found.layers
            },
            "engine_warm_up_artifacts": {(up.engine_id, "done"): up.done for up in now.warm_ups}
            | {(up.engine_id, "failed"): up.failed for up in now.warm_ups}
            | {(up.engine_id, "waiting"): up.total - up.done - up.failed for up in now.warm_ups},
            "quota_used_ratio": {(kind,): ratio for kind, (ratio, _) in now.quotas.items()},
            "quota_refused": {(kind,): refused for kind, (_, refused) in now.quotas.items()},
        }

    def _begin(self, **known: str) -> None:
        """Have the series whose label values are known, with ``known``, stand at zero."""
        values = {**_VALUES, **{label: (value,) for label, value in known.items()}}
        for name, kind, labels, source, _ in _ROWS:
            each = (told.split("|") if told else values.get(label, ()) for label, told in labels)
            for at in itertools.product(*each) if source == "counted" else ():
                self.counts[name].setdefault(at, _new(name) if kind == "histogram" else 0)


def _new(histogram: str) -> Latency:
    """Return the series of a histogram, empty."""
    return Latency([ms / 1000 for ms in _BUCKETS_MS[histogram]])


def _under(now: Readings, way: str) -> Mapping[Labels, float]:
    """Return what stands at the end of a ``way`` of fields; of a mapping, each key is a label."""
    found: dict[Labels, Any] = {(): now}
    for part in way.split("."):
        things, found = found, {}
        for labels, thing in things.items():
            value = getattr(thing, part)
            inside = value.items() if isinstance(value, Mapping) else None
            found |= {labels: value} if inside is None else {(*labels, k): x for k, x in inside}
    return found
