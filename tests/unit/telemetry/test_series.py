"""Labels that cannot grow without end, and counts that threads lose nothing of."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from wasmkilnd.telemetry.metrics import Metrics

METHOD = "/a.B/C"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1", [METHOD])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"wasmkiln_{name}_total", labels)


def test_an_unexpected_series_counts_as_other(metrics: Metrics) -> None:
    before = len(metrics.counts["rpcs"])
    for index in range(100):
        metrics.rpc(METHOD, f"{index}", 0.1)
        metrics.rpc(f"{index}", "OK", 0.1)
    assert value(metrics, "rpcs", method=METHOD, code="OK") == 0
    assert value(metrics, "rpcs", method="other", code="other") == 200
    assert len(metrics.counts["rpcs"]) == before + 1


def test_known_labels_are_kept(metrics: Metrics) -> None:
    metrics.value_rejected("redis", "new")
    metrics.value_rejected("new", "new")
    assert value(metrics, "values_rejected", tier="redis", cause="other") == 1
    assert value(metrics, "values_rejected", tier="other", cause="other") == 1


def test_a_namespace_counts_in_the_whole_daemon_too(metrics: Metrics) -> None:
    namespace = Metrics("1", whole=metrics)
    namespace.tier_lookup("redis", "artifact", "hit", 0.5)
    metrics.tier_lookup("redis", "artifact", "hit", 1.0)
    of = {"tier": "redis", "what": "artifact", "outcome": "hit"}
    assert value(namespace, "tier_lookups", **of) == 1
    assert value(metrics, "tier_lookups", **of) == 2
    took = ("tier_lookup_duration_seconds", "redis", "artifact")
    assert (namespace.summary(*took).sum_s, metrics.summary(*took).sum_s) == (0.5, 1.5)


def test_threads_lose_nothing(metrics: Metrics) -> None:
    def count() -> None:
        for index in range(4000):
            metrics.rpc(METHOD if index % 2 else "new", "OK", 0.1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "rpcs", method=METHOD, code="OK") == 8000
    assert value(metrics, "rpcs", method="other", code="other") == 8000


def test_a_folder_for_several_processes_gets_no_files(tmp_path: Path) -> None:
    """An operator may have set it for the other services of the machine."""
    program = "from wasmkilnd.telemetry.metrics import Metrics; Metrics('1').registry"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
