"""Looks for floods and closes their connections, in a thread of its own.

A flood keeps the event loop busy, so the loop cannot be relied upon to end one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.core_counts import CoreCounts, Counts
from wasmkilnd.rpc.connections.cpu_demand import CpuDemand
from wasmkilnd.rpc.connections.floods import CANCELLED_PER_S, FloodWatch
from wasmkilnd.rpc.connections.sockets import Address

log = structlog.get_logger("wasmkilnd.rpc")

_QUIET_S = 0.25
_LOOK_S = 0.1
_ALERT_S = 0.02
# While the daemon asks for less of a CPU than this, no caller floods it with calls, or frames.
_QUIET_CPU = 0.1
_QUIET_CPU_FRAMES = 0.4
# The share of the time that the guard may spend: on frames, on calls, and after a flood.
_FRAMES_SHARE = 0.02
_CALLS_SHARE = 0.1
_ALERT_SHARE = 0.25
# A flood that goes on over new connections gets one log line in so long a time.
_LOG_S = 10.0


class FloodGuard:
    """Closes connections to some ports that flood the daemon."""

    def __init__(
        self,
        ports: Iterable[int],
        burst: Callable[[], int],
        message_bytes: int,
        on_closed: Callable[[str, int], None],
    ) -> None:
        """See FloodWatch for ``burst`` and ``message_bytes``.

        ``on_closed`` is called with a cause and a number, in the guard's thread.
        """
        self._ports = frozenset(ports)
        self._watch = FloodWatch(burst, message_bytes)
        self._on_closed = on_closed
        self._core = CoreCounts()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood-guard", daemon=True)
        self._cpu = CpuDemand()
        self._at_s, self._failed = time.monotonic(), 0
        self._frames_at_s = 0.0
        self._unlogged: Counter[str] = Counter()
        self._logged_s = -_LOG_S

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = _QUIET_S
        while not self._stopped.wait(wait_s):
            try:
                wait_s = self._tick()
            except Exception:
                # The daemon serves on without a guard. The long wait keeps the log short.
                log.exception("cannot look for floods")
                wait_s = 60.0

    def _tick(self) -> float:
        """Look as closely as the load gives reason to; return the seconds until the next look."""
        now = time.monotonic()
        passed_s, self._at_s = now - self._at_s, now
        cpu = self._cpu.look(now)
        alert = self._watch.alert(now)
        if cpu < _QUIET_CPU and not alert:
            self._watch.forget()
            return _QUIET_S
        before, self._failed = self._failed, self._core.calls_failed()
        at_calls = alert or self._failed - before > CANCELLED_PER_S * passed_s
        if at_calls:
            took_s = self._look(now, at_calls=True)
            return (
                max(_ALERT_S, took_s / _ALERT_SHARE)
                if alert
                else max(_LOOK_S, took_s / _CALLS_SHARE)
            )
        if cpu < _QUIET_CPU_FRAMES:
            self._watch.forget()
        elif now >= self._frames_at_s:
            took_s = self._look(now, at_calls=False)
            self._frames_at_s = now + took_s / _FRAMES_SHARE
        return _QUIET_S

    def _look(self, now: float, *, at_calls: bool) -> float:
        """Look at every connection and close floods; return the seconds that took."""
        received = sockets.received(self._ports)
        found = self._core.sockets()

        def counts(peer: Address) -> Counts | None:
            # A connection that gRPC does not know yet, or any more, has no counts.
            return self._core.counts(found[peer]) if peer in found else None

        cancelled, only_frames = self._watch.look(received, counts, now, at_calls=at_calls)
        self._close("taken_back", cancelled, now)
        self._close("only_frames", only_frames, now)
        return time.monotonic() - now

    def _close(self, cause: str, peers: list[Address], now: float) -> None:
        if not peers:
            return
        closed = sockets.close(peers, self._ports)
        self._on_closed(cause, closed)
        self._unlogged[cause] += closed
        if now - self._logged_s >= _LOG_S:
            log.warning(
                "connections closed: they flood the daemon",
                cause=cause,
                closed=self._unlogged.pop(cause),
                last=", ".join(f"{host}:{port}" for host, port in peers[:3]),
            )
            self._logged_s = now
