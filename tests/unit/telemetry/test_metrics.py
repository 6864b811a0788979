"""What the parts of the daemon record, and what Prometheus and Stats read of it."""

from __future__ import annotations

import time

import pytest
from google.protobuf import duration_pb2
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd.errors import Reason
from wasmkilnd.model import (
    SWITCHED_OFF,
    HostStatus,
    Isolation,
    IsolationLayer,
    LayerState,
    Origin,
    RemoteStatus,
    TierUsage,
)
from wasmkilnd.rpc.messages import stats_response
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics

ENGINE = "wasmtime-50.0.1"
COMPILE = "/wasmkiln.v1.ModuleService/Compile"


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("1.2.3", [COMPILE])
    made.add_engine(ENGINE)
    return made


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return all samples by name and label values, in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


def tier(metrics: Metrics, name: str) -> pb.TierStats:
    (found,) = [each for each in stats_response(metrics).tiers if each.tier == name]
    return found


def seconds_of(duration: duration_pb2.Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def test_everything_known_stands_at_zero_from_the_start(metrics: Metrics) -> None:
    got = samples(metrics)
    for name in ("memory", "redis"):
        for what in ("artifact", "module"):
            for outcome in ("hit", "miss", "error"):
                assert got["wasmkiln_tier_lookups_total", (outcome, name, what)] == 0
            assert got["wasmkiln_tier_lookup_duration_seconds_count", (name, what)] == 0
        assert got["wasmkiln_tier_stores_total", ("error", name)] == 0
        assert got["wasmkiln_values_rejected_total", ("other", name)] == 0
        assert got["wasmkiln_tier_entries", (name,)] == 0
    for outcome in ("ok", *(reason.value.lower() for reason in Reason)):
        assert got["wasmkiln_compiles_total", (ENGINE, outcome)] == 0
    for origin in Origin:
        assert got["wasmkiln_served_total", (origin.value,)] == 0
    assert got["wasmkiln_rpcs_total", ("UNAVAILABLE", COMPILE)] == 0
    assert got["wasmkiln_workers_replaced_total", (ENGINE,)] == 0
    assert got["wasmkiln_flights_joined_total", ()] == 0
    assert got["wasmkiln_sent_bytes_total", ()] == 0
    assert got["wasmkiln_redis_up", ()] == 0
    assert got["wasmkiln_build_info", ("1.2.3",)] == 1
    assert stats_response(metrics).hit_ratio == 0.0


def test_two_do_not_share_anything(metrics: Metrics) -> None:
    Metrics("1.2.3").count("flights_joined")
    assert stats_response(metrics).flights_joined == 0


def test_lookups_are_counted_by_outcome_and_failures_have_no_latency(metrics: Metrics) -> None:
    for outcome, seconds in (("hit", 0.001), ("miss", 0.003), ("miss", 0.003), ("error", 1.0)):
        metrics.tier_lookup("redis", "artifact", outcome, seconds)
    metrics.tier_lookup("redis", "module", "hit", 0.5)
    metrics.tier_lookup("redis", "module", "miss", 0.5)
    metrics.tier_lookup("redis", "module", "error", 0.5)
    metrics.tier_store("redis", "ok", 0.01)
    metrics.tier_store("redis", "error", 2.0)
    metrics.value_rejected("redis", "digest")
    got = tier(metrics, "redis")
    assert (got.hits, got.misses, got.module_hits, got.module_misses) == (1, 2, 1, 1)
    assert got.errors == 4
    assert (got.get_latency.count, seconds_of(got.get_latency.p99)) == (3, 0.003)
    assert (got.put_latency.count, seconds_of(got.put_latency.sum)) == (1, 0.01)
    assert tier(metrics, "memory").errors == 0

    scraped = samples(metrics)
    assert scraped["wasmkiln_tier_lookups_total", ("miss", "redis", "artifact")] == 2
    assert scraped["wasmkiln_tier_lookups_total", ("error", "redis", "artifact")] == 1
    assert scraped["wasmkiln_values_rejected_total", ("digest", "redis")] == 1
    count = scraped["wasmkiln_tier_lookup_duration_seconds_count", ("redis", "artifact")]
    assert count == got.get_latency.count
    in_1_ms = ("0.001", "redis", "artifact")
    assert scraped["wasmkiln_tier_lookup_duration_seconds_bucket", in_1_ms] == 1
    total = scraped["wasmkiln_tier_lookup_duration_seconds_sum", ("redis", "artifact")]
    assert total == pytest.approx(seconds_of(got.get_latency.sum))


def test_compilations_agree_between_prometheus_and_stats(metrics: Metrics) -> None:
    metrics.compiled(ENGINE, "ok", 0.5, 0.0)
    metrics.compiled(ENGINE, "ok", 1.5, 0.2)
    metrics.compiled(ENGINE, "compile_timeout", 30.0, 0.0)
    got = {each.outcome: each.duration for each in stats_response(metrics).compiles}
    assert set(got) == {"ok", "compile_timeout"}
    ok = got["ok"]
    assert (ok.count, seconds_of(ok.sum), seconds_of(ok.p50)) == (2, 2.0, 0.5)
    scraped = samples(metrics)
    for outcome, duration in got.items():
        labels = (ENGINE, outcome)
        assert scraped["wasmkiln_compiles_total", labels] == duration.count
        assert scraped["wasmkiln_compile_duration_seconds_count", labels] == duration.count
        assert scraped["wasmkiln_compile_duration_seconds_sum", labels] == seconds_of(duration.sum)
    assert ("wasmkiln_compile_duration_seconds_count", (ENGINE, "internal")) not in scraped
    assert scraped["wasmkiln_queue_wait_seconds_count", (ENGINE,)] == 3
    assert scraped["wasmkiln_queue_wait_seconds_sum", (ENGINE,)] == pytest.approx(0.2)


def test_the_hit_ratio_is_of_all_answers(metrics: Metrics) -> None:
    for origin in (Origin.MEMORY, Origin.MEMORY, Origin.REDIS, Origin.COMPILED):
        metrics.count("served", origin.value)
    assert stats_response(metrics).hit_ratio == 0.75
    metrics.count("served", Origin.JOINED_FLIGHT.value)
    assert stats_response(metrics).hit_ratio == 0.6
    assert samples(metrics)["wasmkiln_served_total", ("memory",)] == 2


def test_rpcs_bytes_and_replacements(metrics: Metrics) -> None:
    metrics.rpc(COMPILE, "OK", 0.002)
    metrics.rpc(COMPILE, "NOT_FOUND", 0.001)
    metrics.count("sent_bytes", by=1000)
    metrics.count("sent_bytes", by=24)
    metrics.count("workers_replaced", ENGINE)
    scraped = samples(metrics)
    assert scraped["wasmkiln_rpcs_total", ("OK", COMPILE)] == 1
    assert scraped["wasmkiln_rpcs_total", ("NOT_FOUND", COMPILE)] == 1
    assert scraped["wasmkiln_rpc_duration_seconds_count", (COMPILE,)] == 2
    assert scraped["wasmkiln_sent_bytes_total", ()] == 1024
    assert scraped["wasmkiln_workers_replaced_total", (ENGINE,)] == 1
    assert stats_response(metrics).workers[0].replaced == 1


def test_labels_do_not_grow_with_what_callers_send(metrics: Metrics) -> None:
    before = len(samples(metrics))
    for index in range(1000):
        metrics.rpc(f"/attack/{index}", f"CODE_{index}", 0.1)
        metrics.compiled(f"engine-{index}", f"outcome-{index}", 0.1, 0.1)
        metrics.compiled(ENGINE, f"outcome-{index}", 0.1, 0.1)
        metrics.tier_lookup(f"tier-{index}", "artifact", "hit", 0.1)
        metrics.tier_store(f"tier-{index}", "ok", 0.1)
        metrics.value_rejected("redis", f"cause-{index}")
        metrics.count("workers_replaced", f"engine-{index}")
    scraped = samples(metrics)
    assert len(scraped) < before + 150
    assert scraped["wasmkiln_rpcs_total", ("other", "other")] == 1000
    assert scraped["wasmkiln_compiles_total", ("other", "other")] == 2000
    assert scraped["wasmkiln_values_rejected_total", ("other", "redis")] == 1000
    assert tier(metrics, "redis").errors == 1000
    assert [each.engine for each in stats_response(metrics).workers] == [ENGINE]


def test_gauges_are_read_at_each_scrape(metrics: Metrics) -> None:
    flights = 0
    usage = TierUsage(entries=3, bytes=30, limit_bytes=99, evictions=7)
    metrics.gauges.tiers["memory"] = lambda: usage
    metrics.gauges.engines[ENGINE] = lambda: EngineUsage(workers=4, busy=2, queued=5)
    metrics.gauges.flights = lambda: flights
    metrics.gauges.remote = lambda: RemoteStatus("external", True, "", 6, 8)
    flights = 9
    scraped = samples(metrics)
    assert scraped["wasmkiln_tier_entries", ("memory",)] == 3
    assert scraped["wasmkiln_tier_bytes", ("memory",)] == 30
    assert scraped["wasmkiln_tier_limit_bytes", ("memory",)] == 99
    assert scraped["wasmkiln_tier_evictions_total", ("memory",)] == 7
    assert scraped["wasmkiln_workers", (ENGINE,)] == 4
    assert scraped["wasmkiln_workers_busy", (ENGINE,)] == 2
    assert scraped["wasmkiln_queue_depth", (ENGINE,)] == 5
    assert scraped["wasmkiln_flights", ()] == 9
    assert scraped["wasmkiln_redis_up", ()] == 1
    assert scraped["wasmkiln_redis_pending_writes", ()] == 6
    assert scraped["wasmkiln_redis_dropped_writes_total", ()] == 8
    stats = stats_response(metrics)
    assert tier(metrics, "memory").evictions == 7
    assert (stats.busy_workers, stats.queue_depth, stats.flights) == (2, 5, 9)
    assert stats.redis_mode == "external"


def test_the_last_reload_is_told_apart_from_those_before(metrics: Metrics) -> None:
    first = samples(metrics)
    for what in ("settings", "files"):
        assert first["wasmkiln_last_reload_successful", (what,)] == 1
    began_s = first["wasmkiln_last_reload_success_timestamp_seconds", ("settings",)]
    assert began_s == pytest.approx(metrics.started_at_s)
    metrics.reloaded("settings", succeeded=False)
    failed = samples(metrics)
    assert failed["wasmkiln_last_reload_successful", ("settings",)] == 0
    assert failed["wasmkiln_last_reload_successful", ("files",)] == 1
    assert failed["wasmkiln_last_reload_success_timestamp_seconds", ("settings",)] == began_s
    metrics.reloaded("settings", succeeded=True)
    mended = samples(metrics)
    assert mended["wasmkiln_last_reload_successful", ("settings",)] == 1
    assert mended["wasmkiln_last_reload_success_timestamp_seconds", ("settings",)] > began_s
    for outcome in ("ok", "failed"):
        assert mended["wasmkiln_reloads_total", (outcome, "settings")] == 1
        assert mended["wasmkiln_reloads_total", (outcome, "files")] == 0


def test_engines_have_one_state_and_their_isolation(metrics: Metrics) -> None:
    layers = [
        IsolationLayer("seccomp", LayerState.ENFORCED, ""),
        IsolationLayer("landlock", LayerState.PARTIAL, "TCP is not covered"),
        IsolationLayer("root", LayerState.MISSING, "no user namespaces"),
    ]
    metrics.gauges.engine_states = lambda: {ENGINE: True, "wasmer-1.1.0": False}
    metrics.gauges.isolation = lambda: {ENGINE: Isolation(layers, {"open a file": False})}
    scraped = samples(metrics)
    assert scraped["wasmkiln_engine_state", (ENGINE, "served")] == 1
    assert scraped["wasmkiln_engine_state", (ENGINE, "unserved")] == 0
    assert scraped["wasmkiln_engine_state", ("wasmer-1.1.0", "served")] == 0
    assert scraped["wasmkiln_engine_state", ("wasmer-1.1.0", "unserved")] == 1
    assert scraped["wasmkiln_isolation_confined", (ENGINE,)] == 0
    got = [scraped["wasmkiln_isolation_layer", (ENGINE, layer.name)] for layer in layers]
    assert got == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("status", "configured", "up"),
    [
        (HostStatus(), 0, 0),
        (HostStatus(is_on=True), 1, 0),
        (HostStatus(is_on=True, up=True), 1, 1),
    ],
)
def test_a_tier_that_is_switched_off_is_not_one_that_fails(
    metrics: Metrics, status: HostStatus, configured: int, up: int
) -> None:
    metrics.gauges.host = lambda: status
    metrics.gauges.remote = lambda: RemoteStatus("none", up=False, detail=SWITCHED_OFF)
    scraped = samples(metrics)
    assert scraped["wasmkiln_tier_configured", ("host_store",)] == configured
    assert scraped["wasmkiln_host_store_up", ()] == up
    assert scraped["wasmkiln_tier_configured", ("redis",)] == 0
    metrics.gauges.remote = lambda: RemoteStatus("external", up=False, detail="it is down")
    assert samples(metrics)["wasmkiln_tier_configured", ("redis",)] == 1


def test_a_part_that_fails_leaves_the_other_metrics_alone(metrics: Metrics) -> None:
    def broken() -> TierUsage:
        raise OSError("gone")

    metrics.gauges.tiers["redis"] = broken
    metrics.gauges.tiers["memory"] = lambda: TierUsage(entries=3)
    assert samples(metrics)["wasmkiln_tier_entries", ("memory",)] == 3
    redis = tier(metrics, "redis")
    assert (redis.entries, redis.bytes, redis.limit_bytes, redis.evictions) == (0, 0, 0, 0)


def test_uptime_grows(metrics: Metrics) -> None:
    stats = stats_response(metrics)
    assert stats.version == "1.2.3"
    assert abs(stats.started_at.ToSeconds() - time.time()) < 60
    assert 0 < seconds_of(stats.uptime) < metrics.uptime_s
    assert samples(metrics)["wasmkiln_uptime_seconds", ()] > seconds_of(stats.uptime)


def test_openmetrics_is_valid_too(metrics: Metrics) -> None:
    metrics.tier_lookup("memory", "artifact", "hit", 0.00001)
    text = openmetrics_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    ours = {name for name in names if not name.startswith("process_")}
    assert ours
    assert all(name.startswith("wasmkiln_") for name in ours)
