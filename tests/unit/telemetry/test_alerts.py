"""The alerts: what they watch is there before it happens, and each has its runbook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.telemetry.test_metric_names import served

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "deploy" / "prometheus-alerts.yml").read_text()
RUNBOOKS = "docs/reference/alerts.md"
MOST = 14
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
