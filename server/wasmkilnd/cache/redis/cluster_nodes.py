"""The nodes of a cluster: which serves which slots, which are down, and when to ask again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import structlog
from redis.exceptions import ClusterDownError, NoPermissionError

from wasmkilnd.cache.redis.cluster_map import Node, SlotMap
from wasmkilnd.cache.redis.concurrency import first_success, for_each
from wasmkilnd.cache.redis.errors import explain, is_outage
from wasmkilnd.cache.redis.server import SingleServer
from wasmkilnd.errors import PartUnavailable, TierUnavailable

T = TypeVar("T")

# Ask so many nodes for the slots at once: one that hangs costs nothing then.
_ASKED_AT_ONCE = 3
# A node can name a thousand others that do not exist.
_LOOKED_AT_AT_ONCE = 32
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0

_log = structlog.get_logger("wasmkilnd.cache")


class ClusterNodes:
    """What this daemon knows of the cluster to which ``seeds`` belong. For one event loop.

    A node that does not answer is not asked again by calls, until it answers a background task
    or another node has its slots. The task runs while some slot has no node that answers.
    """

    def __init__(self, seeds: Sequence[Node], connect: Callable[[Node], SingleServer]) -> None:
        """``connect`` returns a node's connections, which are closed with this object."""
        self._seeds = tuple(seeds)
        self._connect = connect
        self._servers: dict[Node, SingleServer] = {}
        self._slots = SlotMap()
        self._down: dict[Node, str] = {}
        self._learning: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None

    async def owner(self, slot: int) -> Node:
        """Return the node that serves ``slot``. Raises PartUnavailable if none does."""
        await self.primaries()
        node = self._slots.owner(slot)
        if node is None:
            self.mend()
            raise PartUnavailable("no node of the Redis cluster serves this key")
        return node

    async def primaries(self) -> frozenset[Node]:
        """Return all nodes that serve slots. Raises what asking for the slots raises."""
        if not self._slots.owners:
            await self._learn()
        return self._slots.primaries

    async def ask(self, node: Node, work: Callable[[SingleServer], Awaitable[T]]) -> T:
        """Return what ``work`` returns for ``node``.

        Raises what ``work`` raises, except PartUnavailable if the node is down and others are
        not; at once if the node is known to be down.
        """
        if node in self._down:
            raise self._part_unavailable(node)
        try:
            return await work(self.server(node))
        except Exception as error:
            if not is_outage(error):
                raise
            self._lost(node, explain(error))
            if self._down.keys() >= self._slots.primaries:
                raise
            raise self._part_unavailable(node) from None

    def mend(self) -> None:
        """Read the slots again, in the background, until each slot has a node that answers."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._learn_until_whole())

    async def probe(self) -> None:
        """Raise unless some primary answers and considers the cluster up."""
        await self._learn()
        await self._look_at(self._slots.primaries)
        for node in self._slots.primaries - self._down.keys():
            # A cluster that is down answers PING too.
            with contextlib.suppress(NoPermissionError):
                [info] = await self.server(node).run([("CLUSTER", "INFO")])
                if b"cluster_state:fail" in info:
                    raise ClusterDownError("the cluster is down")
            return
        why = next(iter(self._down.values()), "it has none")
        raise TierUnavailable(f"no primary of the Redis cluster answers: {why}")

    async def close(self) -> None:
        """Close every connection; never raises."""
        tasks = [task for task in (self._mending, self._learning) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    def server(self, node: Node) -> SingleServer:
        """Return the connections to ``node``."""
        server = self._servers.get(node)
        if server is None:
            server = self._servers[node] = self._connect(node)
        return server

    def _lost(self, node: Node, why: str) -> None:
        if node in self._slots.primaries:
            if node not in self._down:
                _log.warning("cluster node is down", node=_written(node), detail=why)
            self._down[node] = why
        self.mend()

    def _part_unavailable(self, node: Node) -> PartUnavailable:
        why = self._down.get(node, "it left the cluster")
        return PartUnavailable(f"a node of the Redis cluster is down: {why}")

    async def _learn(self) -> None:
        """Read the slots; concurrent callers share one request."""
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._ask_for_slots())
        await asyncio.shield(self._learning)

    async def _ask_for_slots(self) -> None:
        # Ask nodes that are down last: they hang, or return an outdated map.
        known = dict.fromkeys([*self._slots.primaries, *self._seeds])
        nodes = sorted(known, key=lambda node: node in self._down)
        failure: Exception | None = None
        while nodes:
            some, nodes = nodes[:_ASKED_AT_ONCE], nodes[_ASKED_AT_ONCE:]
            try:
                self._slots = await first_success(self._slots_from(node) for node in some)
            except Exception as error:
                failure = error
            else:
                return await self._drop_unused_nodes()
        raise failure or TierUnavailable("the Redis cluster has no nodes")

    async def _slots_from(self, node: Node) -> SlotMap:
        [answer] = await self.server(node).run([("CLUSTER", "SLOTS")])
        return SlotMap.read(answer, node)

    async def _drop_unused_nodes(self) -> None:
        """Drop nodes that serve no slots: replaced ones, and replicas among the seeds."""
        for node in self._down.keys() - self._slots.primaries:
            del self._down[node]
            _log.info("cluster node was replaced", node=_written(node))
        unused = [node for node in self._servers if node not in self._slots.primaries]
        await asyncio.gather(*(self._servers.pop(node).close() for node in unused))

    async def _learn_until_whole(self) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            with contextlib.suppress(Exception):
                await self._learn()
                await self._look_at(self._down.keys() & self._slots.primaries)
            if self._slots.complete and not self._down:
                return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _look_at(self, nodes: Iterable[Node]) -> None:
        """Probe ``nodes``, and note which of them answer."""
        await for_each(nodes, self._look, limit=_LOOKED_AT_AT_ONCE)

    async def _look(self, node: Node) -> None:
        try:
            await self.server(node).probe()
        except Exception as error:
            self._lost(node, explain(error))
            return
        if self._down.pop(node, None):
            _log.info("cluster node is up again", node=_written(node))


def _written(node: Node) -> str:
    return f"{node[0]}:{node[1]}"
