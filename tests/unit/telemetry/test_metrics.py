"""What the parts of the daemon record, what Prometheus and Stats read of it, and the alerts.

Names, types, labels and buckets are in metrics.txt. Figures of calls are in
tests/e2e/test_daemon.py and tests/operators/test_prometheus.py.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkilnd.engines.memory import JobsGroup
from wasmkilnd.model import (
    SWITCHED_OFF,
    EngineWarmUp,
    Isolation,
    IsolationLayer,
    LayerState,
    RemoteStatus,
    TierUsage,
)
from wasmkilnd.rpc.messages import stats_response
from wasmkilnd.telemetry.metrics import SAMPLES, EngineUsage, Latency, Metrics

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
    gauges.host = lambda: RemoteStatus("", up=False)
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


# What scrapers rely on: the names, types, labels and buckets in ``metrics.txt``


CONTRACT = (Path(__file__).parent / "metrics.txt").read_text()
PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()


def served() -> Metrics:
    """Return the metrics of a daemon with one engine and one RPC, before the first call."""
    metrics = Metrics("1.2.3", ["/a.B/C"])
    metrics.add_engine("engine-1.0.0")
    metrics.gauges.tls_not_after_s = lambda: {"cert": 1.0, "client_ca": 1.0}
    metrics.gauges.engine_states = lambda: {"engine-1.0.0": True}
    metrics.gauges.isolation = lambda: {
        "engine-1.0.0": Isolation(
            [IsolationLayer("seccomp", LayerState.ENFORCED, "a filter")], {"fork": True}
        )
    }
    metrics.gauges.advisories = lambda: {"engine-1.0.0": 0}
    metrics.gauges.jobs_memory_events = JobsGroup().events
    metrics.gauges.warm_ups = lambda: [EngineWarmUp("engine-1.0.0", "engine-0.9.0", 3)]
    return metrics


def test_the_daemon_serves_exactly_the_metrics_of_the_list() -> None:
    text = generate_latest(served().registry).decode()
    lines = []
    for family in text_string_to_metric_families(text):
        labels: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels[sample.name][label][value] = None
            labels[sample.name].setdefault("", {})
        for name, of_name in labels.items():
            values = [f"{label}={','.join(of_name[label])}" for label in sorted(of_name) if label]
            lines.append(" ".join([family.type, name, *values]))
    ours = [line for line in lines if not line.split()[1].startswith("process_")]
    assert "\n".join(sorted(ours)) + "\n" == CONTRACT


def test_the_page_of_metrics_has_each_metric_with_its_type_and_labels() -> None:
    served_now = set()
    for line in CONTRACT.splitlines():
        kind, name, *labels = line.split()
        if kind == "histogram":
            name = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        names = tuple(label.partition("=")[0] for label in labels)
        served_now.add((name, kind, tuple(sorted({*names} - {"le"}))))
    rows = re.findall(r"^\| (`wasm.+?) \| (\w+) \|(.*?)\|", PAGE, re.MULTILINE)
    listed = [
        (name, kind, tuple(sorted(re.findall(r"`(\w+)`", labels))))
        for names, kind, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert sorted(listed) == sorted(served_now)


# The alerts: what they watch is there before it happens, and each has its runbook


ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "deploy" / "prometheus-alerts.yml").read_text()
RUNBOOKS = "docs/how-to/troubleshoot.md"
MOST = 15
"""Alerts: those that a person would get up for, or look at in the morning."""
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def alerts() -> dict[str, str]:
    """Return the text of each alert by its name."""
    parts = re.split(r"^      - alert: (\w+)$", TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def series() -> dict[str, list[dict[str, str]]]:
    """Return the labels of the series of a daemon before its first call, by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(generate_latest(served().registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def watched(alert: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield the metrics that an alert's expression reads, each with its matchers."""
    for name, matchers in re.findall(r"\b(wasmkiln_\w+)(?:\{([^}]*)\})?", alert):
        yield name, _MATCHER.findall(matchers)


@pytest.mark.parametrize("name", alerts())
def test_what_an_alert_watches_stands_at_zero_from_the_start(name: str) -> None:
    """increase() of a series that appears with its first event is 0: nothing would fire."""
    for metric, matchers in watched(alerts()[name]):
        of_metric = series().get(metric, [])
        assert of_metric, metric
        for label, operator, value in matchers:
            assert all(label in labels for labels in of_metric), (metric, label)
            if operator in ("=", "=~"):
                there = {labels[label] for labels in of_metric}
                assert set(value.split("|")) <= there, (metric, label)


def test_every_alert_has_a_runbook_a_severity_and_a_summary() -> None:
    assert len(alerts()) <= MOST
    page = (ROOT / RUNBOOKS).read_text()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(alerts())
    for name, text in alerts().items():
        assert f"runbook_url: {RUNBOOKS}#{name.lower()}\n" in text
        assert re.search(r"labels: \{severity: (critical|warning)\}", text), name
        assert "summary: " in text, name
        runbook = page.partition(f"### {name}\n\n")[2]
        assert runbook.startswith("Critical. ") == ("severity: critical" in text), name
