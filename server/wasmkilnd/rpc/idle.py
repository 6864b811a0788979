"""Connections without calls make way when an address has hardly any left.

gRPC counts connections for each address, and closes at once what comes beyond the limit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping

import structlog

from wasmkilnd.rpc import connections
from wasmkilnd.rpc.connections import Address

log = structlog.get_logger("wasmkilnd.rpc")

_LOOK_S = 1.0


class IdleConnections:
    """Knows which connections have calls. For one event loop."""

    def __init__(self, limit: int) -> None:
        """An address gets ``limit`` connections."""
        self._limit = limit
        self._reserve = max(1, limit // 8)
        self._calls: Counter[str] = Counter()
        # When the last call of a peer ended. Of the oldest, nothing is known any more: so
        # they count as idle for longest, which of those that are still there is true.
        self._ended: OrderedDict[str, float] = OrderedDict()

    def begin(self, peer: str) -> None:
        """Note that a call of ``peer`` begins."""
        self._calls[peer] += 1

    def end(self, peer: str) -> None:
        """Note that it has ended."""
        self._calls[peer] -= 1
        if self._calls[peer]:
            return
        del self._calls[peer]
        self._ended[peer] = time.monotonic()
        self._ended.move_to_end(peer)
        if len(self._ended) > 4 * self._limit:
            self._ended.popitem(last=False)

    async def make_way(self, ports: frozenset[int]) -> None:
        """Keep some connections to each of ``ports`` free, as long as others are idle, for ever."""
        before: Mapping[Address, int] = {}
        looked_s = 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            most = self._limit - self._reserve
            found = await asyncio.to_thread(connections.opened, ports, most)
            if found:
                calls, ended = list(self._calls), dict(self._ended)
                since = await asyncio.to_thread(_idle_since, found, calls, ended)
                # One that came since the last look, or had a call, may be about to have another.
                idle = {
                    peer: since_s
                    for peer, since_s in since.items()
                    if peer in before and since_s <= looked_s
                }
                if peers := self.surplus(found, idle):
                    closed = await asyncio.to_thread(connections.close, peers, ports)
                    log.warning("idle connections closed: hardly any were left", closed=closed)
            before, looked_s = found, time.monotonic()

    def surplus(
        self, found: Mapping[Address, int], idle: Mapping[Address, float]
    ) -> frozenset[Address]:
        """Answer who has to go of the ``idle``: of the host with most, the longest idle.

        ``found`` are all peers with the port to which they are connected.
        """
        of_port: dict[int, list[Address]] = defaultdict(list)
        for peer, port in found.items():
            of_port[port].append(peer)
        going: set[Address] = set()
        for peers in of_port.values():
            if len(peers) > self._limit - self._reserve:
                count = len(peers) - (self._limit - 2 * self._reserve)
                going.update(_heaviest_hosts_first(peers, idle)[:count])
        return frozenset(going)


def _idle_since(
    found: Mapping[Address, int], calls: Iterable[str], ended: Mapping[str, float]
) -> dict[Address, float]:
    """Answer since when those are idle that are, 0 where that is not known."""
    calling = {connections.parse(peer) for peer in calls}
    known = {connections.parse(peer): since_s for peer, since_s in ended.items()}
    return {peer: known.get(peer, 0.0) for peer in found if peer not in calling}


def _heaviest_hosts_first(peers: list[Address], idle: Mapping[Address, float]) -> list[Address]:
    held = Counter(_host(peer) for peer in peers)
    order: list[tuple[int, float, Address]] = []
    for peer in sorted((peer for peer in peers if peer in idle), key=lambda peer: idle[peer]):
        # By what the host holds when those before this one have gone.
        host = _host(peer)
        order.append((-held[host], idle[peer], peer))
        held[host] -= 1
    return [peer for _, _, peer in sorted(order, key=lambda one: one[:2])]


def _host(peer: Address) -> str:
    """Answer whose connections count together: all of loopback, and of IPv6 a network."""
    address = peer[0]
    if address.is_loopback:
        return "loopback"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return str(address)
