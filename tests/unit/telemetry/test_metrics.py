"""What the parts of the daemon record, and what Prometheus and Stats read of it.

Figures of calls are in tests/e2e/test_daemon.py and tests/operators/test_prometheus.py; names and
labels in test_metric_names.py.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd.model import (
    SWITCHED_OFF,
    HostStatus,
    Isolation,
    IsolationLayer,
    LayerState,
    RemoteStatus,
    TierUsage,
)
from wasmkilnd.rpc.messages import stats_response
from wasmkilnd.telemetry.metrics import KEPT, SAMPLES, EngineUsage, Latency, Metrics

ENGINE = "wasmtime-50.0.1"
METHOD = "/wasmkiln.v1.ModuleService/Compile"


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("1.2.3", [METHOD])
    made.add_engine(ENGINE)
    return made


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return a sample as Prometheus gets it."""
    return metrics.registry.get_sample_value(f"wasmkiln_{name}", labels)


def tier(metrics: Metrics, name: str) -> pb.TierStats:
    (found,) = [each for each in stats_response(metrics).tiers if each.tier == name]
    return found


def test_lookups_are_counted_by_outcome_and_failures_have_no_latency(metrics: Metrics) -> None:
    for outcome, seconds in (("hit", 0.001), ("miss", 0.003), ("miss", 0.003), ("error", 1.0)):
        metrics.tier_lookup("redis", "artifact", outcome, seconds)
    for outcome in ("hit", "miss", "error"):
        metrics.tier_lookup("redis", "module", outcome, 0.5)
    metrics.tier_store("redis", "ok", 0.01)
    metrics.tier_store("redis", "error", 2.0)
    metrics.value_rejected("redis", "digest")
    got = tier(metrics, "redis")
    assert (got.hits, got.misses, got.module_hits, got.module_misses) == (1, 2, 1, 1)
    assert got.errors == 4
    assert (got.get_latency.count, got.get_latency.p99.ToMilliseconds()) == (3, 3)
    assert (got.put_latency.count, got.put_latency.sum.ToMilliseconds()) == (1, 10)
    assert tier(metrics, "memory").errors == 0
    of = {"tier": "redis", "what": "artifact"}
    assert value(metrics, "tier_lookups_total", **of, outcome="miss") == 2
    assert value(metrics, "values_rejected_total", tier="redis", cause="digest") == 1
    assert value(metrics, "tier_lookup_duration_seconds_count", **of) == 3
    assert value(metrics, "tier_lookup_duration_seconds_bucket", **of, le="0.001") == 1
    assert value(metrics, "tier_lookup_duration_seconds_sum", **of) == pytest.approx(0.007)


def test_durations_are_those_of_an_outcome_that_has_happened(metrics: Metrics) -> None:
    for seconds, queued_s in ((0.5, 0.0), (1.5, 0.2)):
        metrics.compiled(ENGINE, "ok", seconds, queued_s)
    of = {"engine": ENGINE, "outcome": "ok"}
    assert value(metrics, "compile_duration_seconds_sum", **of) == 2.0
    assert value(metrics, "compile_duration_seconds_count", engine=ENGINE, outcome="x") is None
    assert value(metrics, "queue_wait_seconds_sum", engine=ENGINE) == pytest.approx(0.2)


def test_labels_do_not_grow_with_what_callers_send(metrics: Metrics) -> None:
    for index in range(100):
        metrics.rpc(f"/attack/{index}", "OK", 0.1)
        metrics.rpc(METHOD, f"CODE_{index}", 0.1)
        metrics.compiled(f"engine-{index}", f"outcome-{index}", 0.1, 0.1)
        metrics.compiled(ENGINE, f"outcome-{index}", 0.1, 0.1)
        metrics.tier_lookup(f"tier-{index}", "artifact", "hit", 0.1)
        metrics.tier_store(f"tier-{index}", "ok", 0.1)
        metrics.value_rejected("redis", f"cause-{index}")
        metrics.value_rejected(f"tier-{index}", "digest")
        metrics.count("workers_replaced", f"engine-{index}")
        if index == 0:
            series = sum(len(family.samples) for family in metrics.registry.collect())
    assert sum(len(family.samples) for family in metrics.registry.collect()) == series
    assert value(metrics, "rpcs_total", method=METHOD, code="OK") == 0
    assert value(metrics, "rpcs_total", method="other", code="other") == 200
    assert value(metrics, "compiles_total", engine="other", outcome="other") == 200
    assert value(metrics, "values_rejected_total", tier="redis", cause="other") == 100
    assert value(metrics, "values_rejected_total", tier="other", cause="other") == 100
    assert tier(metrics, "redis").errors == 100
    assert [each.engine for each in stats_response(metrics).workers] == [ENGINE]


READ = """
tier_entries tier=memory 3
tier_bytes tier=memory 30
tier_limit_bytes tier=memory 99
tier_evictions_total tier=memory 7
tier_entries tier=redis 0
tier_configured tier=host_store 1
host_store_up - 0
workers engine=wasmtime-50.0.1 4
workers_busy engine=wasmtime-50.0.1 2
queue_depth engine=wasmtime-50.0.1 5
flights - 9
redis_up - 1
redis_pending_writes - 6
redis_dropped_writes_total - 8
engine_state engine=wasmtime-50.0.1,state=served 1
engine_state engine=wasmtime-50.0.1,state=unserved 0
engine_state engine=wasmer-1.1.0,state=served 0
engine_state engine=wasmer-1.1.0,state=unserved 1
isolation_confined engine=wasmtime-50.0.1 0
isolation_layer engine=wasmtime-50.0.1,layer=seccomp 1
isolation_layer engine=wasmtime-50.0.1,layer=landlock 0.5
isolation_layer engine=wasmtime-50.0.1,layer=root 0
last_reload_successful what=settings 0
last_reload_successful what=files 1
"""


def test_what_parts_say_is_read_at_each_scrape_and_one_that_fails_costs_no_other(
    metrics: Metrics,
) -> None:
    def broken() -> TierUsage:
        raise OSError("gone")

    gauges = metrics.gauges
    gauges.tiers["memory"], gauges.tiers["redis"] = lambda: TierUsage(3, 30, 99, 7), broken
    gauges.engines[ENGINE] = lambda: EngineUsage(workers=4, busy=2, queued=5)
    gauges.flights = lambda: 9
    gauges.host = lambda: HostStatus(is_on=True)
    gauges.remote = lambda: RemoteStatus("external", True, "", 6, 8)
    gauges.engine_states = lambda: {ENGINE: True, "wasmer-1.1.0": False}
    layers = zip(("seccomp", "landlock", "root"), LayerState, strict=True)
    told = Isolation([IsolationLayer(*each, "why") for each in layers], {"open a file": False})
    gauges.isolation = lambda: {ENGINE: told}
    metrics.reloaded("settings", succeeded=False)
    for row in READ.strip().splitlines():
        name, labels, expected = row.split()
        of = dict(each.split("=") for each in labels.split(",") if each != "-")
        assert value(metrics, name, **of) == float(expected), row
    stats = stats_response(metrics)
    assert (tier(metrics, "memory").evictions, tier(metrics, "redis").entries) == (7, 0)
    assert (stats.busy_workers, stats.queue_depth, stats.flights) == (2, 5, 9)
    assert stats.redis_mode == "external"
    for detail in (SWITCHED_OFF, "it is down"):
        gauges.remote = lambda detail=detail: RemoteStatus("none", up=False, detail=detail)
        assert value(metrics, "tier_configured", tier="redis") == (detail != SWITCHED_OFF)


def test_a_namespace_counts_in_the_whole_daemon_too(metrics: Metrics) -> None:
    namespace = Metrics("1", whole=metrics)
    namespace.tier_lookup("redis", "artifact", "hit", 0.5)
    metrics.tier_lookup("redis", "artifact", "hit", 1.0)
    took = ("tier_lookup_duration_seconds", "redis", "artifact")
    assert (namespace.summary(*took).sum_s, metrics.summary(*took).sum_s) == (0.5, 1.5)
    assert (tier(namespace, "redis").hits, tier(metrics, "redis").hits) == (1, 2)
    namespace.compile_ended("a" * 64, ENGINE, "compiled", "", 0.5)
    assert [each.module for each in metrics.recent] == ["a" * 64]


def test_a_folder_for_several_processes_gets_no_files(tmp_path: Path) -> None:
    """An operator may have set it for the other services of the machine."""
    program = "from wasmkilnd.telemetry.metrics import Metrics; Metrics('1').registry"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


# The last compiles


def test_what_ends_alike_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that tries again and again does not push out what others see."""
    metrics = Metrics("1")
    monkeypatch.setattr(time, "time", iter([1.0, 2.0, 3.0, 4.0]).__next__)
    metrics.compile_ended("a" * 64, "wasmer-1.1.0", "compiled", "", 0.5)
    for _ in range(3):
        metrics.compile_ended("b" * 64, "", "", "COMPILE_QUEUE_FULL", 0.001)
    again, first = metrics.recent
    assert (again.times, again.ended_s) == (3, 4.0)
    assert first.times == 1


def test_no_more_is_kept_than_the_page_shows_nor_more_text_than_a_name_has() -> None:
    metrics = Metrics("1")
    for number in range(3 * KEPT):
        metrics.compile_ended(f"{number} {'x' * 10_000}", "y" * 10_000, "", "MODULE_INVALID", 0.1)
    assert len(metrics.recent) == KEPT
    assert metrics.recent[0].module.startswith(f"{3 * KEPT - 1} ")
    assert max(len(each.module) + len(each.engine) for each in metrics.recent) <= 160


# One series of durations


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(samples: list[float]) -> None:
    latency = Latency([1.0])
    for sample in samples:
        latency.add(sample)
    summary = latency.summary()
    for percent, got in ((50, summary.p50_s), (90, summary.p90_s), (99, summary.p99_s)):
        least = percent * len(samples)
        assert got == min(s for s in samples if sum(x <= s for x in samples) * 100 >= least)


def test_percentiles_are_of_the_last_samples_and_count_and_sum_of_all() -> None:
    latency = Latency([0.5, 1.0])
    for seconds in [100.0] * SAMPLES + [0.5] * SAMPLES:
        latency.add(seconds)
    summary = latency.summary()
    assert (summary.count, summary.p99_s) == (2 * SAMPLES, 0.5)
    assert summary.sum_s == pytest.approx(SAMPLES * 100.5)
    # A bucket includes its upper end.
    counts = [(float(end), count) for end, count in latency.buckets()[0]]
    assert counts == [(0.5, SAMPLES), (1.0, SAMPLES), (math.inf, 2 * SAMPLES)]


def test_threads_lose_nothing(metrics: Metrics) -> None:
    def count() -> None:
        for index in range(4000):
            metrics.rpc(METHOD if index % 2 else "new", "OK", 1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        summary = metrics.summary("rpc_duration_seconds", METHOD)
        assert summary.count == summary.sum_s  # never in part
    assert value(metrics, "rpcs_total", method=METHOD, code="OK") == 8000
    assert value(metrics, "rpcs_total", method="other", code="other") == 8000
    assert metrics.summary("rpc_duration_seconds", METHOD).count == 8000
