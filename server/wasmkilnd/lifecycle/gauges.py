"""Functions that read the metrics' gauges from the daemon's parts."""

from __future__ import annotations

from collections.abc import Callable

from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.rpc.messages import hit_ratio
from wasmkilnd.rpc.traffic import Traffic
from wasmkilnd.telemetry.metrics.readings import EngineUsage, TrafficUsage
from wasmkilnd.telemetry.metrics.recorder import Metrics


def usage_of_engine(engine: ServedEngine) -> Callable[[], EngineUsage]:
    """Return a function that tells how busy an engine is."""
    pool = engine.pool
    return lambda: EngineUsage(
        workers=pool.alive,
        busy=pool.busy,
        queued=pool.waiting,
        queued_in_background=pool.waiting_in_background,
        queued_callers=pool.waiting_callers,
        queued_bytes=pool.waiting_bytes,
        expected_wait_s=pool.expected_wait_s,
    )


def usage_of_traffic(traffic: Traffic) -> Callable[[], TrafficUsage]:
    """Return a function that tells how much memory calls hold."""
    return lambda: TrafficUsage(
        calls=traffic.calls.running,
        receive_bytes=traffic.receive_bytes,
        send_bytes=traffic.send_bytes,
        pinned_bytes=traffic.pinned_bytes,
    )


def figures(metrics: Metrics) -> str:
    """Return what is worth a look in a line: ``systemctl status`` shows it."""
    now = metrics.gauges.read()
    memory, queued = now.tiers.get("memory"), sum(each.queued for each in now.engines.values())
    parts = [
        f"{len(now.engines)} engine{'' if len(now.engines) == 1 else 's'}",
        f"{memory.entries if memory else 0:,} entries in memory",
        f"{hit_ratio(metrics.catalogue):.1%} hits",
        f"{queued:,} queued",
    ]
    return ", ".join(parts)
