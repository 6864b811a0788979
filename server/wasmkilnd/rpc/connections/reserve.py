"""Keeps some connections free, so that no host uses up those of an address.

gRPC counts the connections to each address of ``listen``, and closes new ones at once when
the limit is reached. So the daemon closes old ones in time: first idle connections, then
others of the host that has most. A host that has no more than its share loses none.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import structlog

from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.call import CallsUnderWay, Use, UseSince
from wasmkilnd.rpc.connections.sockets import Address, hosts_of

log = structlog.get_logger("wasmkilnd.rpc")

_LOOK_S = 1.0
_LOOK_AGAIN_S = 0.2
# A connection that was opened, or had a call, more recently may be about to have another.
_IDLE_S = 1.0
# So long connections with calls stay while enough others may turn out to be idle. Not longer:
# a host that opens new connections all the time would keep these from ever counting as idle.
_GRACE_S = 2.0
# Time for the calls to end with a message before their connection is closed.
_GOODBYE_S = 0.2


class ConnectionReserve:
    """Keeps an eighth of each address's connections free. For one event loop."""

    def __init__(
        self, limit: int, calls: CallsUnderWay, on_closed: Callable[[str, int], None]
    ) -> None:
        """Allow ``limit`` connections to an address.

        ``on_closed`` is called with a cause and a number when connections are closed.
        """
        self._limit = limit
        self._reserve = max(1, limit // 8)
        self._calls = calls
        self._on_closed = on_closed
        self._first_seen: dict[Address, float] = {}
        self._short_since_s: float | None = None

    async def run(self, ports: frozenset[int]) -> None:
        """Keep some connections to each of ``ports`` free until cancelled."""
        wait_s = _LOOK_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = _LOOK_AGAIN_S if await self._look(ports) else _LOOK_S

    async def _look(self, ports: frozenset[int]) -> bool:
        """Close connections where too few are free; return whether that was so."""
        found = await asyncio.to_thread(sockets.connected, ports, self._limit - self._reserve)
        now = time.monotonic()
        self._first_seen = {peer: self._first_seen.get(peer, now) for peer in found}
        if not any(self._short(count) for count in Counter(found.values()).values()):
            self._short_since_s = None
            return False
        if self._short_since_s is None:
            self._short_since_s = now
        used = await self._calls.use_of(found)
        hosts = await asyncio.to_thread(hosts_of, found, ports)
        peers = frozenset(self.to_close(found, used, hosts, now))
        if not peers:
            return True
        kinds = Counter(used[peer].use for peer in peers)
        if kinds[Use.IDLE] < len(peers):
            self._calls.end(peers)
            await asyncio.sleep(_GOODBYE_S)
        self._on_closed("no_room", await asyncio.to_thread(sockets.close, peers, ports))
        log.warning(
            "connections closed: hardly any were left",
            idle=kinds[Use.IDLE],
            waiting=kinds[Use.WAITING],
            working=kinds[Use.WORKING],
            hosts=len({hosts[peer] for peer in peers}),
            most=Counter(hosts.values()).most_common(1)[0][0],
        )
        return True

    def to_close(
        self,
        found: Mapping[Address, int],
        used: Mapping[Address, UseSince],
        hosts: Mapping[Address, str],
        now: float,
    ) -> set[Address]:
        """Return the peers to disconnect, given the port and the host of each.

        There are two cases, for each port of which less than an eighth is free:

        - Idle connections are closed until a quarter is free.
        - If an eighth is still not free, connections with calls are closed too: those whose
          calls wait before those for which the daemon works.

        In both cases the next to go is always one of the host that then has most, and of its
        connections the one that has been in that state longest. Hosts that have at most their
        share, had all the same number, keep theirs: the others have enough, since all shares
        together leave a quarter free.
        """
        of_port: dict[int, list[Address]] = defaultdict(list)
        for peer, port in found.items():
            of_port[port].append(peer)
        going: set[Address] = set()
        for peers in of_port.values():
            if not self._short(len(peers)):
                continue
            held = Counter(hosts[peer] for peer in peers)
            share = (self._limit - 2 * self._reserve) // len(held)
            greedy = [peer for peer in peers if held[hosts[peer]] > share]
            unused = [peer for peer in greedy if used[peer].use is Use.IDLE]
            idle = [peer for peer in unused if self._is_idle(peer, used[peer], now)]
            idle.sort(key=lambda peer: used[peer].since_s)
            wanted = len(peers) - (self._limit - 2 * self._reserve)
            first = _heaviest_first(idle, hosts, held, wanted)
            busy = [peer for peer in greedy if used[peer].use is not Use.IDLE]
            busy.sort(key=lambda peer: (used[peer].use, used[peer].since_s))
            needed = len(peers) - (self._limit - self._reserve) - len(first)
            if now - (self._short_since_s or now) < _GRACE_S:
                needed -= len(unused) - len(idle)
            going.update(first, _heaviest_first(busy, hosts, held, needed))
        return going

    def _short(self, count: int) -> bool:
        return count > self._limit - self._reserve

    def _is_idle(self, peer: Address, used: UseSince, now: float) -> bool:
        since_s = max(used.since_s, self._first_seen.get(peer, 0.0))
        return now - since_s >= _IDLE_S


def _heaviest_first(
    order: list[Address], hosts: Mapping[Address, str], held: Counter[str], count: int
) -> list[Address]:
    """Return ``count`` of the peers, each of the host that then has most; update ``held``."""
    of_host: dict[str, list[Address]] = defaultdict(list)
    for peer in reversed(order):
        of_host[hosts[peer]].append(peer)
    going: list[Address] = []
    while len(going) < count and of_host:
        host = max(of_host, key=lambda host: held[host])
        going.append(of_host[host].pop())
        held[host] -= 1
        if not of_host[host]:
            del of_host[host]
    return going
