"""Reads the metrics every few seconds, whether or not somebody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wasmkilnd.telemetry.metrics import OK, EngineUsage, Metrics
from wasmkilnd.telemetry.status_page.history import STEP_S, History, Sample, Window
from wasmkilnd.telemetry.status_page.origins import ORIGINS


@dataclass(frozen=True, slots=True)
class _Totals:
    at_s: float
    served: tuple[int, ...]
    compiles: dict[tuple[str, ...], int] = field(default_factory=dict)
    """By engine and outcome."""


class Sampler:
    """Keeps the history of one daemon. For one event loop."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        """Begin now."""
        self._metrics = metrics
        self._clock = clock
        self._history = History()
        self._before = self._totals()

    async def run(self) -> None:
        """Take a sample every few seconds until cancelled."""
        while True:
            await asyncio.sleep(STEP_S)
            self.take()

    def take(self) -> None:
        """Keep what happened since the sample before."""
        totals = self._totals()
        self._history.add(self._since(totals))
        self._before = totals

    def window(self) -> Window:
        """Return what charts show, up to this moment."""
        return self._history.window(self._since(self._totals()))

    def _totals(self) -> _Totals:
        served, took = self._metrics.counts["served"], self._metrics.took
        compiles = list(took["compile_duration_seconds"].items())
        return _Totals(
            self._clock(),
            tuple(served[origin.value,] for origin in ORIGINS),
            {labels: each.count for labels, each in compiles},
        )

    def _since(self, now: _Totals) -> Sample:
        compiled, failed, took = 0, 0, list[float]()
        for labels, series in list(self._metrics.took["compile_duration_seconds"].items()):
            new = now.compiles.get(labels, 0) - self._before.compiles.get(labels, 0)
            if labels[-1] != OK:
                failed += new
            elif new:
                compiled += new
                took += series.last(new)
        pools = [self._pool(source) for source in list(self._metrics.gauges.engines.values())]
        # Of very many, only the last durations are known: they stand for all.
        scale = compiled / len(took) if took else 0.0
        return Sample(
            at_s=now.at_s,
            span_s=max(0.001, now.at_s - self._before.at_s),  # the clock may be set back
            served=[
                after - before
                for after, before in zip(now.served, self._before.served, strict=True)
            ],
            compiled=compiled,
            failed=failed,
            took_s=sum(took) * scale,
            slowest_s=max(took, default=0.0),
            queued=sum(pool.queued for pool in pools),
            busy=sum(pool.busy for pool in pools),
            workers=sum(pool.workers for pool in pools),
        )

    @staticmethod
    def _pool(source: Callable[[], EngineUsage]) -> EngineUsage:
        try:
            return source()
        except Exception:  # /metrics says so in the log; the next sample may succeed
            return EngineUsage()
