"""The list of recent compiles is short, whatever callers send."""

from __future__ import annotations

import time

import pytest
from wasmkilnd.telemetry.metrics import KEPT, Metrics


def test_the_newest_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics("1")
    monkeypatch.setattr(time, "time", iter([1.0, 2.0]).__next__)
    metrics.compile_ended("a" * 64, "wasmer-1.1.0", "compiled", "", 0.5)
    metrics.compile_ended("b" * 64, "", "", "COMPILE_TIMEOUT", 30.0)
    newest, oldest = metrics.recent
    assert (newest.module, newest.reason, newest.ended_s) == ("b" * 64, "COMPILE_TIMEOUT", 2.0)
    assert (oldest.engine, oldest.origin, oldest.took_s) == ("wasmer-1.1.0", "compiled", 0.5)


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


def test_what_ends_in_a_namespace_is_in_the_list_of_the_daemon() -> None:
    whole = Metrics("1")
    Metrics("1", whole=whole).compile_ended("a" * 64, "wasmer-1.1.0", "compiled", "", 0.5)
    assert [each.module for each in whole.recent] == ["a" * 64]
