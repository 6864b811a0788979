"""One series of durations."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.telemetry.metrics.window import SAMPLES, LatencySummary, Window


def test_an_empty_window_is_all_zero() -> None:
    window = Window((0.1,))
    assert window.summary() == LatencySummary()
    assert window.buckets() == ([(0.1, 0), (math.inf, 0)], 0.0)
    assert window.count == 0


def test_percentiles_are_by_nearest_rank() -> None:
    window = Window()
    for milliseconds in range(100, 0, -1):
        window.add(milliseconds / 1000)
    summary = window.summary()
    assert (summary.p50_s, summary.p90_s, summary.p99_s) == (0.050, 0.090, 0.099)
    assert summary.count == 100
    assert summary.sum_s == pytest.approx(5.05)


def test_one_sample_is_every_percentile() -> None:
    window = Window()
    window.add(0.25)
    assert window.summary() == LatencySummary(1, 0.25, 0.25, 0.25, 0.25)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(samples: list[float]) -> None:
    window = Window()
    for sample in samples:
        window.add(sample)
    summary = window.summary()
    for percent, got in ((50, summary.p50_s), (90, summary.p90_s), (99, summary.p99_s)):
        least = percent * len(samples)
        assert got == min(s for s in samples if sum(x <= s for x in samples) * 100 >= least)


def test_percentiles_forget_and_count_and_sum_do_not() -> None:
    window = Window((1.0,))
    for _ in range(SAMPLES):
        window.add(100.0)
    for _ in range(SAMPLES):
        window.add(0.5)
    summary = window.summary()
    assert summary.count == 2 * SAMPLES
    assert summary.sum_s == pytest.approx(SAMPLES * 100.5)
    assert summary.p99_s == 0.5
    assert window.buckets()[0] == [(1.0, SAMPLES), (math.inf, 2 * SAMPLES)]


def test_a_bucket_includes_its_upper_end() -> None:
    window = Window((0.1, 0.2))
    for seconds in (0.1, 0.1001, 0.2, 7):
        window.add(seconds)
    assert window.buckets()[0] == [(0.1, 1), (0.2, 3), (math.inf, 4)]


@pytest.mark.parametrize("nonsense", [-1.0, math.nan, math.inf, -math.inf])
def test_what_is_no_duration_counts_as_zero(nonsense: float) -> None:
    window = Window((0.1,))
    window.add(nonsense)
    assert window.summary() == LatencySummary(1)
    assert window.buckets() == ([(0.1, 1), (math.inf, 1)], 0.0)


def test_threads_lose_nothing() -> None:
    window = Window((0.5,))

    def add() -> None:
        for _ in range(5000):
            window.add(1.0)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        buckets, sum_s = window.buckets()
        assert buckets[-1][1] == sum_s  # never in part
    for thread in threads:
        thread.join()
    assert window.summary().count == 20000
    assert window.summary().sum_s == 20000.0
