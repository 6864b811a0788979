"""Tells connections that flood the daemon from those that give it work.

gRPC's core ends hardly any flood. Two kinds can be told from work:

- Calls that their callers cancel before the answer ("rapid reset"). Each costs the event loop
  as much as a small call, and no limit on calls under way stops them.
- Frames that carry neither a call nor a message, such as PRIORITY or WINDOW_UPDATE. gRPC
  reads them as fast as they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wasmkilnd.rpc.connections.core_counts import Counts
from wasmkilnd.rpc.connections.sockets import Address

# Calls that all callers together may cancel in a second, for any length of time. Honest
# callers cancel calls whose deadlines pass. At this rate other calls wait no longer, even
# on a slow machine.
CANCELLED_PER_S = 250
# For so long after a flood was ended, one on a new connection is ended sooner.
_ALERT_S = 10.0
_ALERT_SHARE = 8
# Counts start again after this time, or an hour of honest calls would add up to a flood.
_PERIOD_S = 5.0
# A call that is begun and cancelled takes at least so many bytes.
_CALL_BYTES = 24
# A connection that sent fewer bytes since the last look is no flood of frames.
_MANY_BYTES = 2 * 1024 * 1024


@dataclass(slots=True)
class _Connection:
    bytes: int
    """The bytes that it has sent so far."""
    counts: Counts | None
    """Its counts at the last look; None before the first."""
    progress_bytes: int
    """``bytes`` at the last look at which a call had begun or a message arrived."""


class FloodWatch:
    """Compares what connections have sent with the calls and messages that came of it."""

    def __init__(self, burst: Callable[[], int], message_bytes: int) -> None:
        """Let callers cancel ``burst`` calls at once, and send messages of ``message_bytes``."""
        self._burst = burst
        self._message_bytes = message_bytes
        self._connections: dict[Address, _Connection] = {}
        self._complete = False
        self._cancelled: Counter[Address] = Counter()
        self._since_s = self._alert_until_s = 0.0

    def alert(self, now: float) -> bool:
        """Return whether a flood was ended a short while ago."""
        return now < self._alert_until_s

    def forget(self) -> None:
        """Drop what is known of connections, which are not looked at for a while."""
        self._connections.clear()
        self._cancelled.clear()
        self._complete = False

    def look(
        self,
        received: Mapping[Address, int],
        counts: Callable[[Address], Counts | None],
        now: float,
        *,
        at_calls: bool,
    ) -> tuple[list[Address], list[Address]]:
        """Return the peers that cancel calls too fast, and those that send only frames.

        ``received`` has the bytes of every connection. ``counts`` reads the counts of one; it is
        slow, and called only for connections that may be a flood. Cancelled calls are looked
        at only with ``at_calls``.
        """
        only_frames: list[Address] = []
        for peer in self._connections.keys() - received.keys():
            del self._connections[peer]
        for peer, size in received.items():
            connection = self._connections.get(peer)
            if connection is None:
                # A connection opened since the last look has done all its work since then.
                new = Counts() if self._complete else None
                connection = self._connections[peer] = _Connection(0 if new else size, new, 0)
            sent = size - connection.bytes
            connection.bytes = size
            if sent < (_CALL_BYTES if at_calls else _MANY_BYTES) or not (found := counts(peer)):
                continue
            if self._progress(peer, connection, found):
                only_frames.append(peer)
        self._complete = True
        return self._most_cancelled(now) if at_calls else [], only_frames

    def _progress(self, peer: Address, connection: _Connection, found: Counts) -> bool:
        """Note the counts; return whether it sent more bytes than its open calls can need."""
        before, connection.counts = connection.counts, found
        if before:
            self._cancelled[peer] += found.cancelled - before.cancelled
        if before is None or (found.begun, found.messages) != (before.begun, before.messages):
            connection.progress_bytes = connection.bytes
        idle_bytes = connection.bytes - connection.progress_bytes
        return idle_bytes > (1 + found.open) * self._message_bytes

    def _most_cancelled(self, now: float) -> list[Address]:
        """Return the peers that cancelled most, as many as exceed the allowed rate; often none."""
        allowed = CANCELLED_PER_S * (now - self._since_s)
        burst = self._burst() // (_ALERT_SHARE if self.alert(now) else 1)
        total = self._cancelled.total()
        found: list[Address] = []
        if total > allowed + burst:
            for peer, cancelled in self._cancelled.most_common():
                if total <= allowed:
                    break
                found.append(peer)
                total -= cancelled
            self._alert_until_s = now + _ALERT_S
        if found or now - self._since_s > _PERIOD_S:
            self._since_s = now
            self._cancelled.clear()
        return found
