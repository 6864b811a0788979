"""The charts' history: an hour at most, and columns that stay as they are."""

from __future__ import annotations

from wasmkilnd.model import Origin
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics
from wasmkilnd.telemetry.status_page.history import COLUMNS, KEPT, STEP_S, History, Sample
from wasmkilnd.telemetry.status_page.origins import ORIGINS
from wasmkilnd.telemetry.status_page.sampler import Sampler

ENGINE = "wasmtime-50.0.1"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def sample(at_s: float, calls: int = 1) -> Sample:
    return Sample(at_s=at_s, span_s=STEP_S, served=[calls, 0, 0, 0, 0])


def test_a_sample_is_what_happened_since_the_one_before() -> None:
    metrics, clock = Metrics("1.2.3"), Clock()
    metrics.add_engine(ENGINE)
    metrics.gauges.engines[ENGINE] = lambda: EngineUsage(workers=2, busy=1, queued=3)
    metrics.served(Origin.MEMORY)
    metrics.compiled(ENGINE, "ok", 9.0, 0.0)
    sampler = Sampler(metrics, clock)
    metrics.served(Origin.MEMORY)
    metrics.served(Origin.COMPILED)
    metrics.compiled(ENGINE, "ok", 1.0, 0.0)
    metrics.compiled(ENGINE, "ok", 3.0, 0.0)
    metrics.compiled(ENGINE, "compile_timeout", 30.0, 0.0)
    clock.now_s += STEP_S
    [column] = sampler.window().known
    assert dict(zip(ORIGINS, column.served, strict=True))[Origin.MEMORY] == 1
    assert sum(column.served) == 2
    assert (column.compiled, column.failed) == (2, 1)
    assert (column.mean_s, column.slowest_s) == (2.0, 3.0)
    assert (column.workers, column.busy, column.queued) == (2, 1, 3)
    assert column.per_s(column.compiled) == 2 / STEP_S


def test_looking_takes_nothing_from_the_next_sample() -> None:
    metrics, clock = Metrics("1.2.3"), Clock()
    sampler = Sampler(metrics, clock)
    metrics.served(Origin.REDIS)
    clock.now_s += 2
    assert sum(sampler.window().served) == 1
    clock.now_s += STEP_S - 2
    sampler.take()
    clock.now_s += STEP_S
    sampler.take()
    assert sum(sampler.window().served) == 1


def test_more_compiles_than_durations_are_kept_count_all() -> None:
    metrics, clock = Metrics("1.2.3"), Clock()
    metrics.add_engine(ENGINE)
    sampler = Sampler(metrics, clock)
    for _ in range(3000):
        metrics.compiled(ENGINE, "ok", 2.0, 0.0)
    clock.now_s += STEP_S
    [column] = sampler.window().known
    assert column.compiled == 3000
    assert round(column.mean_s, 6) == 2.0


def test_a_pool_that_cannot_be_read_costs_no_sample() -> None:
    metrics, clock = Metrics("1.2.3"), Clock()
    metrics.add_engine(ENGINE)

    def broken() -> EngineUsage:
        raise RuntimeError("gone")

    metrics.gauges.engines[ENGINE] = broken
    sampler = Sampler(metrics, clock)
    metrics.served(Origin.MEMORY)
    clock.now_s += STEP_S
    sampler.take()
    assert sum(sampler.window().served) == 1


def test_an_hour_is_kept_and_no_more() -> None:
    history = History()
    for number in range(2 * KEPT):
        history.add(sample(number * STEP_S))
    window = history.window(sample(2 * KEPT * STEP_S))
    assert window.seconds == KEPT * STEP_S == 3600
    assert len(window.columns) == COLUMNS
    assert sum(window.served) <= KEPT + 1


def test_a_young_daemon_fills_its_charts() -> None:
    history = History()
    history.add(sample(5.0))
    assert history.window(sample(10.0)).seconds == 300
    for number in range(3, 100):
        history.add(sample(number * STEP_S))
    assert history.window(sample(500.0)).seconds == 900


def test_a_column_that_is_whole_stays_as_it_is() -> None:
    """Charts move on without trembling."""
    history = History()
    for number in range(1, 400):
        history.add(sample(number * STEP_S, calls=number))
    before = history.window(sample(400 * STEP_S)).known
    history.add(sample(400 * STEP_S))
    after = {each.begins_s: each for each in history.window(sample(401 * STEP_S)).known}
    same = [each for each in before[1:-2] if each.begins_s in after]
    assert len(same) > 30
    assert all(after[each.begins_s].served == each.served for each in same)
