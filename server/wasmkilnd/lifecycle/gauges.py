"""Functions that read the metrics' gauges from the daemon's parts."""

from __future__ import annotations

from collections.abc import Callable

from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.rpc.calls import Traffic
from wasmkilnd.telemetry.metrics.gauges import EngineUsage, TrafficUsage
from wasmkilnd.waiters import Waiter


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
        expected_wait_s=pool.expected_wait_s(Waiter()),
    )


def usage_of_traffic(traffic: Traffic) -> Callable[[], TrafficUsage]:
    """Return a function that tells how much memory calls hold."""
    return lambda: TrafficUsage(
        calls=traffic.gate.running,
        receive_bytes=traffic.receiver.held_bytes,
        send_bytes=traffic.sender.unread_bytes,
        pinned_bytes=traffic.sender.pinned_bytes,
    )
