"""Connections make way when an address has hardly any left, so that nobody keeps others out.

gRPC counts connections for each address of ``listen``, and closes at once what comes
beyond the limit. So the daemon keeps some free: it closes idle ones, and if there are
none, those of the host that has most.
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
# One that came, or had a call, a shorter time ago may be about to have another.
_IDLE_S = 1.0
# So long others stay where such are enough: who opens new ones all the time gains nothing.
_PATIENCE_S = 2.0
# For callers to be told, before their connection is closed.
_TELL_S = 0.2


class ConnectionReserve:
    """Keeps some connections free. For one event loop."""

    def __init__(
        self, limit: int, calls: CallsUnderWay, closed: Callable[[str, int], None]
    ) -> None:
        """An address gets ``limit`` connections; ``closed`` is told why and how many end."""
        self._limit = limit
        self._reserve = max(1, limit // 8)
        self._calls = calls
        self._closed = closed
        self._first_seen: dict[Address, float] = {}
        self._short_since_s: float | None = None

    async def run(self, ports: frozenset[int]) -> None:
        """Keep some connections to each of ``ports`` free, for ever."""
        wait_s = _LOOK_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = _LOOK_AGAIN_S if await self._look(ports) else _LOOK_S

    async def _look(self, ports: frozenset[int]) -> bool:
        """Close what has to make way; tell whether anything had to."""
        found = await asyncio.to_thread(sockets.opened, ports, self._limit - self._reserve)
        now = time.monotonic()
        self._first_seen = {peer: self._first_seen.get(peer, now) for peer in found}
        if not any(self._short(count) for count in Counter(found.values()).values()):
            self._short_since_s = None
            return False
        if self._short_since_s is None:
            self._short_since_s = now
        used = await self._calls.use_of(found)
        hosts = await asyncio.to_thread(hosts_of, found, ports)
        peers = frozenset(self.who_goes(found, used, hosts, now))
        if not peers:
            return True
        kinds = Counter(used[peer].use for peer in peers)
        if kinds[Use.IDLE] < len(peers):
            self._calls.end(peers)
            await asyncio.sleep(_TELL_S)
        self._closed("no_room", await asyncio.to_thread(sockets.close, peers, ports))
        log.warning(
            "connections closed: hardly any were left",
            idle=kinds[Use.IDLE],
            waiting=kinds[Use.WAITING],
            working=kinds[Use.WORKING],
            hosts=len({hosts[peer] for peer in peers}),
            most=Counter(hosts.values()).most_common(1)[0][0],
        )
        return True

    def who_goes(
        self,
        found: Mapping[Address, int],
        used: Mapping[Address, UseSince],
        hosts: Mapping[Address, str],
        now: float,
    ) -> set[Address]:
        """Return who has to make way, given the port and the host of each peer.

        First idle ones, until a quarter is free. If an eighth is not, others too: of the
        host with most, those that wait before those for which the daemon works. Always
        of the host with most at that point, and what is so for longest first.
        """
        of_port: dict[int, list[Address]] = defaultdict(list)
        for peer, port in found.items():
            of_port[port].append(peer)
        going: set[Address] = set()
        for peers in of_port.values():
            if not self._short(len(peers)):
                continue
            held = Counter(hosts[peer] for peer in peers)
            unused = [peer for peer in peers if used[peer].use is Use.IDLE]
            idle = [peer for peer in unused if self._is_idle(peer, used[peer], now)]
            idle.sort(key=lambda peer: used[peer].since_s)
            wanted = len(peers) - (self._limit - 2 * self._reserve)
            first = _heaviest_first(idle, hosts, held, wanted)
            busy = [peer for peer in peers if used[peer].use is not Use.IDLE]
            busy.sort(key=lambda peer: (used[peer].use, used[peer].since_s))
            needed = len(peers) - (self._limit - self._reserve) - len(first)
            if now - (self._short_since_s or now) < _PATIENCE_S:
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
    """Return ``count`` peers in order, each of the host that then has most; ``held`` follows."""
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
