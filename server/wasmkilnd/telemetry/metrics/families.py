"""Turns what the gauges read into the families of metrics that /metrics shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from wasmkilnd.model import EngineWarmUp, Isolation, LayerState, TierUsage
from wasmkilnd.telemetry.metrics.catalogue import PREFIX
from wasmkilnd.telemetry.metrics.readings import EngineUsage, Readings, ReloadStatus, TlsStatus

_IN_FORCE: Final = {LayerState.ENFORCED: 1.0, LayerState.PARTIAL: 0.5, LayerState.MISSING: 0.0}


def of_readings(now: Readings) -> Iterator[Metric]:
    """Yield every family."""
    yield _gauge("ready", "Whether the daemon serves calls, as /readyz says.", now.ready)
    yield from _of_tiers(now.tiers)
    yield from _of_tiers_in_use(now)
    yield from _of_engines(now.engines)
    yield _of_engine_states(now.engine_states)
    yield from _of_isolation(now.isolation)
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
    yield from _of_writes(now)
    yield from _of_tls(now.tls)
    yield _of_warm_ups(now.warm_ups)
    yield from _of_reloads(now.reloads)
    yield CounterMetricFamily(
        f"{PREFIX}log_lines_dropped",
        "Lines of the log that nobody read in time, or that could not be written.",
        now.log_lines_dropped,
    )


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


def _of_tiers_in_use(now: Readings) -> Iterator[Metric]:
    configured = GaugeMetricFamily(
        f"{PREFIX}tier_configured", "Whether the settings switch the tier on.", labels=["tier"]
    )
    configured.add_metric(["memory"], True)
    configured.add_metric(["host_store"], now.host.is_on)
    configured.add_metric(["redis"], not now.remote.switched_off)
    yield configured
    yield _gauge("redis_up", "Whether the Redis tier answers.", now.remote.up)
    yield _gauge(
        "host_store_up", "Whether the host store can be used.", now.host.is_on and now.host.up
    )


def _of_writes(now: Readings) -> Iterator[Metric]:
    for name, title, status in (
        ("redis", "Redis", now.remote),
        ("host_store", "the host store", now.host),
    ):
        yield _gauge(
            f"{name}_pending_writes", f"Writes that wait to go to {title}.", status.pending_writes
        )
        yield CounterMetricFamily(
            f"{PREFIX}{name}_dropped_writes",
            f"Writes to {title} that the daemon gave up.",
            status.dropped_writes,
        )


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


def _of_engine_states(served: Mapping[str, bool]) -> Metric:
    states = GaugeMetricFamily(
        f"{PREFIX}engine_state",
        "1 for the state that an installed engine is in, 0 for the other.",
        labels=["engine", "state"],
    )
    for engine, is_served in served.items():
        states.add_metric([engine, "served"], is_served)
        states.add_metric([engine, "unserved"], not is_served)
    return states


def _of_isolation(isolation: Mapping[str, Isolation]) -> Iterator[Metric]:
    confined = GaugeMetricFamily(
        f"{PREFIX}isolation_confined",
        "Whether every attempt of an engine's jobs to break out was refused.",
        labels=["engine"],
    )
    layers = GaugeMetricFamily(
        f"{PREFIX}isolation_layer",
        "How far a layer of isolation is in force: 1 in full, 0.5 in part, 0 not at all.",
        labels=["engine", "layer"],
    )
    for engine, found in isolation.items():
        confined.add_metric([engine], found.holds)
        for layer in found.layers:
            layers.add_metric([engine, layer.name], _IN_FORCE[layer.state])
    yield confined
    yield layers


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


def _of_reloads(reloads: Mapping[str, ReloadStatus]) -> Iterator[Metric]:
    succeeded = GaugeMetricFamily(
        f"{PREFIX}last_reload_successful",
        "Whether the last reload could apply what it read.",
        labels=["what"],
    )
    at_s = GaugeMetricFamily(
        f"{PREFIX}last_reload_success_timestamp_seconds",
        "When what is in force was read, in seconds since 1970.",
        labels=["what"],
    )
    for what, status in reloads.items():
        succeeded.add_metric([what], status.succeeded)
        at_s.add_metric([what], status.succeeded_at_s)
    yield succeeded
    yield at_s


def _by_label(
    family: GaugeMetricFamily | CounterMetricFamily, usages: Mapping[str, object], field: str
) -> Metric:
    for label, usage in usages.items():
        family.add_metric([label], getattr(usage, field))
    return family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, help_text, value)
