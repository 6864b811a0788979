"""The nodes of a cluster: who serves which slots, who is down, and finding out anew."""

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

# Nodes that are asked for the slots at once, so that one that hangs costs nothing.
_ASKED_AT_ONCE = 3
# A node can name a thousand others, whether they are there or not.
_LOOKED_AT_AT_ONCE = 32
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0

_log = structlog.get_logger("wasmkilnd.cache")


class ClusterNodes:
    """What is known of the cluster to which ``seeds`` belong. For one event loop.

    A node that does not answer is left alone until it does, or until another has its
    slots: a task of its own looks, for as long as a slot has no node that answers.
    """

    def __init__(self, seeds: Sequence[Node], connect: Callable[[Node], SingleServer]) -> None:
        """``connect`` answers a node's connections, which are closed with this object."""
        self._seeds = tuple(seeds)
        self._connect = connect
        self._servers: dict[Node, SingleServer] = {}
        self._slots = SlotMap()
        self._down: dict[Node, str] = {}
        self._learning: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None

    async def owner(self, slot: int) -> Node:
        """Return who serves ``slot``. Raises PartUnavailable if nobody does."""
        await self.primaries()
        node = self._slots.owner(slot)
        if node is None:
            self.mend()
            raise PartUnavailable("no node of the Redis cluster serves this key")
        return node

    async def primaries(self) -> frozenset[Node]:
        """Return all who serve slots. Raises what asking for them raises."""
        if not self._slots.owners:
            await self._learn()
        return self._slots.primaries

    async def ask(self, node: Node, work: Callable[[SingleServer], Awaitable[T]]) -> T:
        """Return what ``work`` does with ``node``.

        Raises what it raises; but PartUnavailable if the node is down while others are
        not, and that at once if it was found down before.
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
        """Learn the slots anew, in the background, until each has a node that answers."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._learn_until_whole())

    async def probe(self) -> None:
        """Raise unless some primary answers and holds the cluster for up."""
        await self._learn()
        await self._look_at(self._slots.primaries)
        for node in self._slots.primaries - self._down.keys():
            # PING is answered by a cluster that is down too.
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
        """Ask for the slots; callers of the same moment ask once."""
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._ask_for_slots())
        await asyncio.shield(self._learning)

    async def _ask_for_slots(self) -> None:
        # Those that are down come last: they hang, or tell of a time before they were.
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
                return await self._forget_strangers()
        raise failure or TierUnavailable("the Redis cluster has no nodes")

    async def _slots_from(self, node: Node) -> SlotMap:
        [answer] = await self.server(node).run([("CLUSTER", "SLOTS")])
        return SlotMap.read(answer, node)

    async def _forget_strangers(self) -> None:
        """Let go of nodes that serve no slots: replaced ones, and replicas among the seeds."""
        for node in self._down.keys() - self._slots.primaries:
            del self._down[node]
            _log.info("cluster node was replaced", node=_written(node))
        strangers = [node for node in self._servers if node not in self._slots.primaries]
        await asyncio.gather(*(self._servers.pop(node).close() for node in strangers))

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
        """Find out which of ``nodes`` answer."""
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
