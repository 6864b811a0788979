"""Connections that flood the daemon are closed: gRPC's core ends hardly any of them.

Two kinds can be told apart from work. Calls that are taken back before they are answered
("rapid reset"): each costs the event loop as much as a small call, and no limit on calls
under way stops it. And frames that carry neither a call nor a message, such as PRIORITY
or WINDOW_UPDATE: gRPC reads them as fast as they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wasmkilnd.rpc.connections.core_counts import Counts
from wasmkilnd.rpc.connections.sockets import Address

# Calls that may be taken back in a second, by all callers together, on and on. Honest
# callers take back those whose deadlines pass. At this rate nobody else waits longer,
# also on a slow machine.
TAKEN_BACK_PER_S = 250
# Since a flood was ended, whoever goes on with it on a new connection has less time.
_ALERT_S = 10.0
_ALERT_SHARE = 8
# What is counted together: not so long that an hour of honest calls adds up to a flood.
_PERIOD_S = 5.0
# A call that is begun and taken back has this many bytes at least.
_CALL_BYTES = 24
# A connection that sent less than this since the last look is no flood of frames.
_MANY_BYTES = 2 * 1024 * 1024


@dataclass(slots=True)
class _Connection:
    bytes: int
    """What it has sent."""
    counts: Counts | None
    """As they were last read, None if they never were."""
    progress_bytes: int
    """What it had sent when a call was last seen to have begun or a message to have arrived."""


class FloodWatch:
    """Tells from what connections have sent, and what came of it, which of them are floods."""

    def __init__(self, burst: Callable[[], int], message_bytes: int) -> None:
        """``burst`` is how many calls may be taken back at once; messages have a largest size."""
        self._burst = burst
        self._message_bytes = message_bytes
        self._connections: dict[Address, _Connection] = {}
        self._complete = False
        self._taken_back: Counter[Address] = Counter()
        self._since_s = self._alert_until_s = 0.0

    def alert(self, now: float) -> bool:
        """Tell whether a flood was ended a short while ago."""
        return now < self._alert_until_s

    def forget(self) -> None:
        """Begin anew: nobody looked at connections for a while."""
        self._connections.clear()
        self._taken_back.clear()
        self._complete = False

    def look(
        self,
        received: Mapping[Address, int],
        counts: Callable[[Address], Counts | None],
        now: float,
        *,
        at_calls: bool,
    ) -> tuple[list[Address], list[Address]]:
        """Return who takes calls back too fast, and who sends nothing but frames.

        ``received`` are the bytes of all connections; ``counts`` reads those of one, and
        is only asked about connections that may be a flood. Who takes calls back is
        looked for only ``at_calls``.
        """
        only_frames: list[Address] = []
        for peer in self._connections.keys() - received.keys():
            del self._connections[peer]
        for peer, size in received.items():
            connection = self._connections.get(peer)
            if connection is None:
                # Whoever came since the last look has all that it did from then.
                new = Counts() if self._complete else None
                connection = self._connections[peer] = _Connection(0 if new else size, new, 0)
            sent = size - connection.bytes
            connection.bytes = size
            if sent < (_CALL_BYTES if at_calls else _MANY_BYTES) or not (found := counts(peer)):
                continue
            if self._progress(peer, connection, found):
                only_frames.append(peer)
        self._complete = True
        return self._most_taken_back(now) if at_calls else [], only_frames

    def _progress(self, peer: Address, connection: _Connection, found: Counts) -> bool:
        """Note what came of it; tell whether more bytes came than its open calls could need."""
        before, connection.counts = connection.counts, found
        if before:
            self._taken_back[peer] += found.taken_back - before.taken_back
        if before is None or (found.begun, found.messages) != (before.begun, before.messages):
            connection.progress_bytes = connection.bytes
        idle_bytes = connection.bytes - connection.progress_bytes
        return idle_bytes > (1 + found.open) * self._message_bytes

    def _most_taken_back(self, now: float) -> list[Address]:
        """Return nobody, or the connections that took back most, until the rest is bearable."""
        bearable = TAKEN_BACK_PER_S * (now - self._since_s)
        burst = self._burst() // (_ALERT_SHARE if self.alert(now) else 1)
        total = self._taken_back.total()
        going: list[Address] = []
        if total > bearable + burst:
            for peer, taken_back in self._taken_back.most_common():
                if total <= bearable:
                    break
                going.append(peer)
                total -= taken_back
            self._alert_until_s = now + _ALERT_S
        if going or now - self._since_s > _PERIOD_S:
            self._since_s = now
            self._taken_back.clear()
        return going
