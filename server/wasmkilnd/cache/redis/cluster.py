"""A Redis Cluster as one server: each command goes to the node that serves its key.

redis-py's cluster client is not used because it keeps one state for the whole cluster: after
one node fails, every call waits until the slots are read again, from nodes that may hang. So
the keys of healthy nodes suffer as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from wasmkilnd.cache.redis.cluster_map import Node, node_named, slot_of
from wasmkilnd.cache.redis.cluster_nodes import ClusterNodes
from wasmkilnd.cache.redis.server import Command, SingleServer, without_errors
from wasmkilnd.errors import PartUnavailable
from wasmkilnd.model import TierUsage

_MAX_ROUNDS = 5
_TRY_AGAIN_S = 0.05


class _Place(NamedTuple):
    """The node that runs a command; ``asking`` if ASKING has to precede the command."""

    node: Node
    asking: bool = False


class ClusterServer:
    """The cluster to which ``seeds`` belong.

    Commands on keys of a node that is down raise PartUnavailable, from the second one on at
    once; commands on other keys work. If every node is down, the last error is raised.
    """

    is_one_place = False

    def __init__(self, seeds: Sequence[Node], connect: Callable[[Node], SingleServer]) -> None:
        """``connect`` returns a node's connections, which are closed with this server."""
        self._nodes = ClusterNodes(seeds, connect)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """As RedisServer; several nodes run their commands at the same time."""
        answers: list[Any] = [None] * len(commands)
        places = {
            index: _Place(await self._nodes.owner(slot_of(command)))
            for index, command in enumerate(commands)
        }
        for _ in range(_MAX_ROUNDS):
            by_node: dict[Node, list[int]] = {}
            for index, place in places.items():
                by_node.setdefault(place.node, []).append(index)
            # Wait for all, so that no reply arrives after its reader is gone.
            done = await asyncio.gather(
                *(
                    self._run_at(node, [(commands[i], places[i].asking) for i in indices])
                    for node, indices in by_node.items()
                ),
                return_exceptions=True,
            )
            for indices, replies in zip(by_node.values(), done, strict=True):
                for index, answer in zip(indices, _each(replies, len(indices)), strict=True):
                    answers[index] = answer
            places = {
                index: await self._redirected(place.node, answers[index])
                for index, place in places.items()
                if isinstance(answers[index], AskError | TryAgainError)  # MovedError is one.
            }
            if not places:
                return without_errors(answers)
        raise PartUnavailable("the nodes of the Redis cluster disagree on which serves a key")

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """As RedisServer, primary by primary. Raises PartUnavailable if one is down."""
        for node in sorted(await self._nodes.primaries()):
            pages = self._nodes.server(node).scan(pattern)
            next_page = partial(_next, pages)
            while (page := await self._nodes.ask(node, next_page)) is not None:
                yield page

    async def usage(self) -> TierUsage:
        """As RedisServer: sums over those primaries that answer."""
        replies = await asyncio.gather(
            *(
                self._nodes.ask(node, lambda server: server.usage())
                for node in await self._nodes.primaries()
            ),
            return_exceptions=True,
        )
        usages = [each for each in replies if isinstance(each, TierUsage)]
        if not usages:
            without_errors(list(replies))
        return TierUsage(
            entries=sum(each.entries for each in usages),
            bytes=sum(each.bytes for each in usages),
            limit_bytes=sum(each.limit_bytes for each in usages),
            evictions=sum(each.evictions for each in usages),
        )

    async def probe(self) -> None:
        """As RedisServer: one primary is enough, if it considers the cluster up."""
        await self._nodes.probe()

    async def close(self) -> None:
        """As RedisServer."""
        await self._nodes.close()

    async def _run_at(self, node: Node, commands: Sequence[tuple[Command, bool]]) -> list[Any]:
        """Return the replies of ``node``, errors among them."""
        batch: list[Command] = []
        for command, asking in commands:
            batch += [("ASKING",), command] if asking else [command]
        answers = iter(await self._nodes.ask(node, lambda server: server.answers(batch)))
        replies = []
        for _, asking in commands:
            if asking:
                next(answers)
            replies.append(self._read(next(answers)))
        return replies

    def _read(self, answer: Any) -> Any:
        if isinstance(answer, ClusterDownError) and "not served" in str(answer):
            self._nodes.mend()
            return PartUnavailable("no node of the Redis cluster serves this key")
        return answer

    async def _redirected(self, asked: Node, answer: AskError | TryAgainError) -> _Place:
        if isinstance(answer, TryAgainError):
            await asyncio.sleep(_TRY_AGAIN_S)
            return _Place(asked)
        moved = isinstance(answer, MovedError)
        if moved:
            self._nodes.mend()
        return _Place(node_named(answer.host, answer.port, asked), asking=not moved)


async def _next(pages: AsyncIterator[list[bytes]], _: SingleServer) -> list[bytes] | None:
    return await anext(pages, None)


def _each(replies: list[Any] | BaseException, count: int) -> list[Any]:
    return [replies] * count if isinstance(replies, BaseException) else replies
