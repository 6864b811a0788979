"""One series of durations."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.telemetry.metrics import SAMPLES, Latency, LatencySummary


class Rig:
    """A series and its buckets."""

    def __init__(self, *ends: float) -> None:
        self.latency = Latency(ends)

    def buckets(self) -> tuple[list[tuple[float, float]], float]:
        """Return each bucket's upper end with the samples up to it, and the sum of all."""
        buckets, sum_s = self.latency.buckets()
        return [(float(end), count) for end, count in buckets], sum_s


def test_an_empty_series_is_all_zero() -> None:
    rig = Rig(0.1)
    assert rig.latency.summary() == LatencySummary()
    assert rig.buckets() == ([(0.1, 0), (math.inf, 0)], 0.0)


def test_percentiles_are_by_nearest_rank() -> None:
    rig = Rig(1.0)
    for milliseconds in range(100, 0, -1):
        rig.latency.add(milliseconds / 1000)
    summary = rig.latency.summary()
    assert (summary.p50_s, summary.p90_s, summary.p99_s) == (0.050, 0.090, 0.099)
    assert summary.count == 100
    assert summary.sum_s == pytest.approx(5.05)


def test_one_sample_is_every_percentile() -> None:
    rig = Rig(1.0)
    rig.latency.add(0.25)
    assert rig.latency.summary() == LatencySummary(1, 0.25, 0.25, 0.25, 0.25)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(samples: list[float]) -> None:
    rig = Rig(1.0)
    for sample in samples:
        rig.latency.add(sample)
    summary = rig.latency.summary()
    for percent, got in ((50, summary.p50_s), (90, summary.p90_s), (99, summary.p99_s)):
        least = percent * len(samples)
        assert got == min(s for s in samples if sum(x <= s for x in samples) * 100 >= least)


def test_percentiles_are_of_the_last_samples_and_count_and_sum_of_all() -> None:
    rig = Rig(1.0)
    for _ in range(SAMPLES):
        rig.latency.add(100.0)
    for _ in range(SAMPLES):
        rig.latency.add(0.5)
    summary = rig.latency.summary()
    assert summary.count == 2 * SAMPLES
    assert summary.sum_s == pytest.approx(SAMPLES * 100.5)
    assert summary.p99_s == 0.5
    assert rig.buckets()[0] == [(1.0, SAMPLES), (math.inf, 2 * SAMPLES)]


def test_a_bucket_includes_its_upper_end() -> None:
    rig = Rig(0.1, 0.2)
    for seconds in (0.1, 0.1001, 0.2, 7):
        rig.latency.add(seconds)
    assert rig.buckets()[0] == [(0.1, 1), (0.2, 3), (math.inf, 4)]


def test_threads_lose_nothing() -> None:
    rig = Rig(0.5)

    def add() -> None:
        for _ in range(5000):
            rig.latency.add(1.0)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        summary = rig.latency.summary()
        assert summary.count == summary.sum_s  # never in part
    for thread in threads:
        thread.join()
    assert rig.latency.summary().count == 20000
    assert rig.latency.summary().sum_s == 20000.0
    assert rig.buckets() == ([(0.5, 0), (math.inf, 20000)], 20000.0)
