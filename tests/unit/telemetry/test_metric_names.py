"""What scrapers rely on: the names, types, labels and buckets in ``metrics.txt``."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families
from wasmkilnd.model import EngineWarmUp, Isolation, IsolationLayer, LayerState
from wasmkilnd.telemetry.metrics import Metrics, TlsStatus

CONTRACT = (Path(__file__).parent / "metrics.txt").read_text()
PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()


def served() -> Metrics:
    """Return the metrics of a daemon with one engine and one RPC, before the first call."""
    metrics = Metrics("1.2.3", ["/a.B/C"])
    metrics.add_engine("engine-1.0.0")
    metrics.gauges.tls = lambda: TlsStatus({"cert": 1.0, "client_ca": 1.0})
    metrics.gauges.engine_states = lambda: {"engine-1.0.0": True}
    metrics.gauges.isolation = lambda: {
        "engine-1.0.0": Isolation(
            [IsolationLayer("seccomp", LayerState.ENFORCED, "a filter")], {"fork": True}
        )
    }
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


def test_openmetrics_has_the_same_samples() -> None:
    metrics = served()
    text = openmetrics_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    names = {
        sample.name
        for family in parse_openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if not sample.name.startswith("process_")
    }
    assert names == {line.split()[1] for line in CONTRACT.splitlines()}


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
