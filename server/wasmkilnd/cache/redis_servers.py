"""Every kind of Redis as one thing that runs commands: ``connect`` makes it of a URL.

Single servers (TCP, TLS, Unix socket), primaries that Sentinels name, and the nodes of a cluster
are reached with redis-py's connections; Upstash over REST with aiohttp. Replies are as the server
sends them: strings as bytes, whole numbers as int, OK as ``b"OK"``, nothing as None.

No command is retried, and nothing here bounds the time of a whole call: ``RedisLink``, above, does
both, and is the only caller. Errors are those of the libraries; ``described`` turns each into a
TierUnavailable with a fixed sentence, which never repeats a server's text: it may quote what the
server was sent, even a password.
"""

from __future__ import annotations

import wasmkilnd.cache.redis_library  # noqa: F401 - before anything loads redis-py

# isort: split

import asyncio
import base64
import contextlib
import itertools
import json
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import aiohttp
import structlog
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, NodesManager, PipelineCommand
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.credentials import CredentialProvider
from yarl import URL

from wasmkilnd.errors import PartUnavailable, TierUnavailable, WrongType, forget_frames
from wasmkilnd.model import TierUsage
from wasmkilnd.redis_address import RedisAddress, RedisKind

Command: TypeAlias = tuple[bytes | str | int, ...]
"""A command and its arguments, for example ``("SET", name, value, "EX", 60)``."""

CLIENT_NAME = "wasmkiln"

WRITE_TIMEOUT_S = 10.0
"""How long all steps of a write may take together (a connection, sending, the reply)."""

NO_ANSWER = "Redis does not answer in time"
"""For a server that accepts connections and does not answer."""

_log = structlog.get_logger("wasmkilnd.cache")

_SCAN_COUNT = 1000
_MAX_CONNECTIONS = 32
# Large reads take half the time of redis-py's default of 32 KiB (docs/explanation/performance.md).
_READ_BYTES = 1024 * 1024


class RedisServer(ABC):
    """A server, or several that act as one; safe for concurrent use from one event loop.

    A kind of server defines ``ask``, and what it keeps open: ``drop_idle`` and ``close``.
    """

    @abstractmethod
    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Return the replies to ``commands``, errors of the server among them.

        One round trip where that is possible, and no transaction; commands on one key run in
        order. The key is a command's first argument (of EVAL, the third). ``timeout_s`` is what
        the caller grants to all of it.
        """

    async def drop_idle(self) -> None:  # noqa: B027 - two kinds keep nothing open
        """Drop idle connections: after an outage they look alive, and each costs a time-out."""

    async def close(self) -> None:  # noqa: B027 - two kinds keep nothing open
        """Close every connection; never raises."""

    async def scan(self, pattern: bytes, timeout_s: float) -> AsyncIterator[list[bytes]]:
        """Return the keys that match ``pattern``, in pages of one round trip each.

        Includes each key that exists during the whole scan; some may come twice.
        """
        cursor: Any = 0
        while True:
            command: Command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            [(cursor, page)] = without_errors(await self.ask([command], timeout_s))
            if not all(type(name) is bytes for name in page):
                raise TypeError("the server returned something other than names")
            yield page
            if int(cursor) == 0:
                return

    async def usage(self, timeout_s: float) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report."""
        replies = await self.ask([("DBSIZE",), ("INFO", "memory"), ("INFO", "stats")], timeout_s)
        for reply in replies:
            # The server answers, though this user may not see it, or it does not know.
            refusals = (exceptions.ResponseError, exceptions.NoPermissionError)
            if isinstance(reply, Exception) and type(reply) not in refusals:
                raise reply
        entries, memory, stats = replies
        numbers = _numbers(memory) | _numbers(stats)
        return TierUsage(
            entries=entries if type(entries) is int else 0,
            bytes=numbers.get("used_memory", 0),
            limit_bytes=numbers.get("maxmemory", 0),
            evictions=numbers.get("evicted_keys", 0),
        )

    async def probe(self, timeout_s: float) -> None:
        """Ask on a new connection whether the server answers; raise if not."""
        await self.drop_idle()
        [reply] = await self.ask([("PING",)], timeout_s)
        # A user without permission to PING was answered all the same.
        if isinstance(reply, Exception) and not isinstance(reply, exceptions.NoPermissionError):
            raise reply


def without_errors(replies: list[Any]) -> list[Any]:
    """Return ``replies``; raise the first error among them."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _numbers(info: Any) -> dict[str, int]:
    """Read the whole numbers of a reply to INFO."""
    lines = info.decode(errors="replace").splitlines() if isinstance(info, bytes) else []
    pairs = (line.partition(":") for line in lines)
    return {name: int(value) for name, _, value in pairs if value.isascii() and value.isdigit()}


class UnavailableServer(RedisServer):
    """Stands for a server that could not be started yet: each call raises TierUnavailable."""

    def __init__(self, why: str) -> None:
        """``why`` is the text of each error."""
        self._why = why

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer."""
        raise TierUnavailable(self._why)


class SingleServer(RedisServer):
    """One server, through redis-py's connections of ``pool``."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer, in one round trip."""
        # Not by a client or its pipeline: they convert replies, which every caller would undo.
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except exceptions.ResponseError as refusal:
                    replies.append(refusal)
        finally:
            await self._pool.release(connection)
        if any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies):
            # This server was the primary once. A new connection goes to the server that its
            # name, its Sentinels or its virtual address stand for now.
            await self.drop_idle()
        return replies

    async def drop_idle(self) -> None:
        """As RedisServer."""
        await self._pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """As RedisServer."""
        with contextlib.suppress(Exception):
            await self._pool.disconnect()


# ---- Sentinel


class SentinelServer(SingleServer):
    """The server that is the primary of ``service`` now.

    Each new connection asks the Sentinels first, so connections to a primary that died or was
    demoted are replaced by connections to its successor. ``options`` are for connections to the
    primary, ``sentinel_options`` for those to the Sentinels.
    """

    def __init__(
        self,
        address: RedisAddress,
        options: Mapping[str, Any],
        sentinel_options: Mapping[str, Any],
    ) -> None:
        self._sentinels = _Sentinels(address, sentinel_options)
        kind = _SentinelTlsConnection if address.tls else _SentinelConnection
        super().__init__(
            _SentinelPool(address.service, self._sentinels, connection_class=kind, **options)  # type: ignore[no-untyped-call]
        )

    async def close(self) -> None:
        """As RedisServer."""
        await super().close()
        closing = (each.aclose() for each in self._sentinels.sentinels)
        await asyncio.gather(*closing, return_exceptions=True)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """A pool in which callers beyond its limit wait, instead of being refused."""


class _Sentinels(Sentinel):
    def __init__(self, address: RedisAddress, options: Mapping[str, Any]) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        kind = _TlsConnection if address.tls else _TcpConnection
        self.sentinels = [
            Redis.from_pool(ConnectionPool(connection_class=kind, host=host, port=port, **options))
            for host, port in address.hosts
        ]

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return where the primary is. Raises MasterNotFoundError.

        Asks all Sentinels at once: redis-py asks one after the other, so the first one,
        if it hangs, would use up the time of every call.
        """
        try:
            return await _first_success(self._ask(each, service_name) for each in self.sentinels)
        except Exception as failure:
            raise MasterNotFoundError("no Sentinel names a primary") from failure

    async def _ask(self, sentinel: Redis, service_name: str) -> tuple[str, int]:
        state: Any = await sentinel.sentinel_master(service_name)
        # A Sentinel that lost its peers still names the primary that died, but marks it down.
        if not self.check_master_state(state, service_name):
            raise exceptions.ConnectionError("the primary that this Sentinel names is down")
        return state["ip"], state["port"]


async def _first_success(
    attempts: Iterable[Coroutine[Any, Any, tuple[str, int]]],
) -> tuple[str, int]:
    """Return what the first attempt to succeed returns, and cancel the others.

    Raises what the last one to fail raised if all failed.
    """
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    try:
        failure: Exception = ValueError("there are no attempts")
        for task in asyncio.as_completed(tasks):
            try:
                return await task
            except Exception as error:
                failure = error
        raise failure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---- Cluster


class ClusterServer(RedisServer):
    """The cluster to which ``seeds`` belong: each command goes to the node that has its key.

    A node that does not answer is not asked again by calls, until it answers a background task
    or another node has its slots. Meanwhile commands on its keys raise PartUnavailable, at once
    from the second one on, and commands on other keys work. If every primary is down, the last
    error is raised.

    redis-py knows the nodes and the slots. Its ``RedisCluster`` is not used: after one lost
    connection every call of it waits until the slots are read again, perhaps from a node that
    hangs; its ASKING may go on another connection than the command; and it asks for COMMAND.
    """

    # A node must time out before the whole call does: else one dead node would pass for an
    # outage of the whole cluster.
    _NODE_SHARE = 0.75
    _MOST_REDIRECTIONS = 5
    _TRY_AGAIN_S = 0.05
    _FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0

    def __init__(
        self,
        seeds: Sequence[tuple[str, int]],
        options: Mapping[str, Any],
        *,
        timeout_s: float,
    ) -> None:
        """``options`` are those of a ClusterNode; ``timeout_s`` is for the background task."""
        self._seeds, self._timeout_s = tuple(seeds), timeout_s
        # More than calls use: the background task needs some.
        self._options = {**options, "max_connections": 2 * _MAX_CONNECTIONS}
        # Callers beyond the limit of a node wait: redis-py would refuse them.
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_MAX_CONNECTIONS)
        )
        self._nodes = NodesManager(self._new_seeds(), False, self._options)
        self._down: dict[str, str] = {}
        """Why each primary that does not answer does not, by its name."""
        self._reading: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer: each node gets its commands in one round trip, all at the same time."""
        await self._know_slots()
        by_node: dict[ClusterNode, list[int]] = defaultdict(list)
        replies: list[Any] = [None] * len(commands)
        for index, command in enumerate(commands):
            owners = self._nodes.slots_cache.get(_slot_of(command))
            if owners:
                by_node[owners[0]].append(index)
            else:
                self._mend()
                replies[index] = PartUnavailable("no node of the Redis cluster serves this key")

        async def at(node: ClusterNode, indices: list[int]) -> None:
            answers = await self._at(node, [commands[index] for index in indices], timeout_s)
            for index, answer in zip(indices, answers, strict=True):
                if isinstance(answer, exceptions.AskError | exceptions.TryAgainError):
                    answer = await self._follow(node, answer, commands[index], timeout_s)
                replies[index] = answer

        # Wait for all, so that no reply arrives after its reader is gone.
        work = (at(node, indices) for node, indices in by_node.items())
        without_errors(await asyncio.gather(*work, return_exceptions=True))
        return replies

    async def scan(self, pattern: bytes, timeout_s: float) -> AsyncIterator[list[bytes]]:
        """As RedisServer, primary by primary. Raises PartUnavailable if one is down."""
        await self._know_slots()
        for node in self._primaries():
            async for page in _OneNode(self, node).scan(pattern, timeout_s):
                yield page

    async def usage(self, timeout_s: float) -> TierUsage:
        """As RedisServer: sums over those primaries that answer."""
        await self._know_slots()
        replies = await asyncio.gather(
            *(_OneNode(self, node).usage(timeout_s) for node in self._primaries()),
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

    async def probe(self, timeout_s: float) -> None:
        """As RedisServer: one primary is enough, if it considers the cluster up."""
        await self._read_slots()
        await self._look_at(self._primaries())
        answering = [node for node in self._primaries() if node.name not in self._down]
        if not answering:
            why = next(iter(self._down.values()), "it has none")
            raise TierUnavailable(f"no primary of the Redis cluster answers: {why}")
        # A cluster that is down answers PING too.
        [info] = await self._at(answering[0], [("CLUSTER", "INFO")], timeout_s)
        if isinstance(info, bytes) and b"cluster_state:fail" in info:
            raise exceptions.ClusterDownError("the cluster is down")

    async def close(self) -> None:
        """As RedisServer."""
        tasks = [task for task in (self._mending, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for nodes in ("nodes_cache", "startup_nodes"):
            with contextlib.suppress(Exception):
                await self._nodes.aclose(nodes)

    def _primaries(self) -> list[ClusterNode]:
        nodes = {owners[0].name: owners[0] for owners in self._nodes.slots_cache.values()}
        return [nodes[name] for name in sorted(nodes)]

    async def _at(
        self, node: ClusterNode, commands: Sequence[Command], timeout_s: float
    ) -> list[Any]:
        """Return the replies of ``node``.

        Each is PartUnavailable if the node is down and others are not: at once if it is known
        to be. Raises what its connection raises if all are down.
        """
        try:
            if node.name not in self._down:
                sent = [PipelineCommand(at, *command) for at, command in enumerate(commands)]
                async with self._turns[node.name], asyncio.timeout(timeout_s * self._NODE_SHARE):
                    await node.execute_pipeline(sent)
                replies = [self._read(command.result) for command in sent]
                for reply in replies:
                    if isinstance(reply, Exception) and _is_lost(reply):
                        raise reply
                return replies
        except Exception as error:
            if not _is_lost(error):
                raise
            self._lost(node, str(described(error)))
            if self._down.keys() >= {each.name for each in self._primaries()}:
                raise
            forget_frames(error)
        why = self._down.get(node.name, "it left the cluster")
        return [PartUnavailable(f"a node of the Redis cluster is down: {why}") for _ in commands]

    def _read(self, reply: Any) -> Any:
        if isinstance(reply, exceptions.ClusterDownError) and "not served" in str(reply):
            self._mend()
            return PartUnavailable("no node of the Redis cluster serves this key")
        return reply

    async def _follow(
        self, node: ClusterNode, reply: Exception, command: Command, timeout_s: float
    ) -> Any:
        """Return the reply to ``command`` of the node to which ``reply`` redirects it."""
        for _ in range(self._MOST_REDIRECTIONS):
            before: list[Command] = []
            if isinstance(reply, exceptions.TryAgainError):
                await asyncio.sleep(self._TRY_AGAIN_S)
            elif isinstance(reply, exceptions.AskError):  # MovedError is one.
                host = reply.host if reply.host not in ("", "?") else node.host
                known = self._nodes.get_node(host, reply.port)
                if isinstance(reply, exceptions.MovedError):
                    self._mend()
                else:
                    before = [("ASKING",)]
                if known is None:
                    known = ClusterNode(host, reply.port, PRIMARY, **self._options)
                    self._nodes.set_nodes(self._nodes.nodes_cache, {known.name: known})
                node = known
            else:
                return reply
            # In one round trip, so that ASKING and the command go on the same connection.
            *_, reply = await self._at(node, [*before, command], timeout_s)
        return PartUnavailable("the nodes of the Redis cluster disagree on which serves a key")

    def _lost(self, node: ClusterNode, why: str) -> None:
        if any(node.name == each.name for each in self._primaries()):
            if node.name not in self._down:
                _log.warning("cluster node is down", node=node.name, detail=why)
            self._down[node.name] = why
        self._mend()

    async def _know_slots(self) -> None:
        if not self._nodes.slots_cache:
            await self._read_slots()

    async def _read_slots(self) -> None:
        """Ask for the slots; concurrent callers share one request, and may leave it."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._ask_for_slots())
        await asyncio.shield(self._reading)

    async def _ask_for_slots(self) -> None:
        nodes, cause = self._nodes, None
        try:
            # A node that is down is asked last.
            await nodes.initialize(last_failed_node_name=next(iter(self._down), None))
        except exceptions.RedisClusterException as failure:
            # The nodes that it knew may be gone for good.
            seeds = {each.name: each for each in self._new_seeds()}
            nodes.startup_nodes = seeds | nodes.startup_nodes
            # redis-py's sentence repeats what a node said; what caused it has a sentence here.
            cause = failure.__cause__
            cause = cause.__context__ if type(cause) is type(failure) else cause
            cause = cause or failure
        if cause is not None:
            raise cause
        primaries = {node.name for node in self._primaries()}
        for name in self._down.keys() - primaries:
            del self._down[name]
            _log.info("cluster node was replaced", node=name)

    def _new_seeds(self) -> list[ClusterNode]:
        return [ClusterNode(host, port, **self._options) for host, port in self._seeds]

    def _mend(self) -> None:
        """Read the slots again, in the background, until each slot has a node that answers."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._read_until_whole())

    async def _read_until_whole(self) -> None:
        wait_s = self._FIRST_WAIT_S
        while True:
            with contextlib.suppress(Exception):
                await self._read_slots()
            await self._look_at([node for node in self._primaries() if node.name in self._down])
            if len(self._nodes.slots_cache) == REDIS_CLUSTER_HASH_SLOTS and not self._down:
                return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._LONGEST_WAIT_S)

    async def _look_at(self, nodes: Iterable[ClusterNode]) -> None:
        """Ask each of ``nodes`` on a new connection, and note which answer."""
        await asyncio.gather(*(self._look(node) for node in nodes))

    async def _look(self, node: ClusterNode) -> None:
        try:
            async with asyncio.timeout(self._timeout_s * self._NODE_SHARE):
                await node.disconnect_free_connections()
                with contextlib.suppress(exceptions.NoPermissionError):
                    await node.execute_command("PING")
        except Exception as error:
            self._lost(node, str(described(error)))
            forget_frames(error)
            return
        if self._down.pop(node.name, None):
            _log.info("cluster node is up again", node=node.name)


class _OneNode(RedisServer):
    """One primary of a cluster, for what is asked of each of them."""

    def __init__(self, cluster: ClusterServer, node: ClusterNode) -> None:
        self._cluster, self._node = cluster, node

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        return await self._cluster._at(self._node, commands, timeout_s)


def _slot_of(command: Command) -> int:
    key = command[3 if command[0] == "EVAL" else 1]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


def _is_lost(error: Exception) -> bool:
    """Return whether ``error`` tells that a node does not answer, or refuses everything."""
    return not isinstance(error, exceptions.ClusterDownError) and is_outage(error)


# ---- Upstash over REST


class UpstashRestServer(RedisServer):
    """The database at ``url``; each request carries the token that ``token`` returns.

    The library ``upstash-redis`` is not used: it sends commands as JSON and decodes replies as
    UTF-8, so it cannot carry the bytes of an artifact either way, and it has no time-outs. The
    protocol itself can: a binary argument is the body of a request, and replies come in base64.
    See https://upstash.com/docs/redis/features/restapi.
    """

    _USAGE_AGE_S = 300.0
    # Beyond the ranges that were asked for: names, numbers, JSON's own, a page of a scan.
    _SLACK_BYTES = 8 * 1024 * 1024
    # Below this, handing a reply to a thread costs more than parsing it.
    _INLINE_BYTES = 64 * 1024
    _SYNC_TOKEN = "Upstash-Sync-Token"  # noqa: S105 - the name of a header

    def __init__(
        self, url: str, token: Callable[[], str], tls: ssl.SSLContext, *, connect_timeout_s: float
    ) -> None:
        self._url, self._token, self._tls = url.rstrip("/"), token, tls
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._sync_token = ""
        self._usage: TierUsage | None = None
        self._usage_at_s = 0.0

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer: one request, but one for each command with a binary argument."""
        replies: list[Any] = []
        texts = [[_text(part) for part in command] for command in commands]
        for is_text, group in itertools.groupby(texts, key=_is_text):
            some = list(group)
            if not is_text:
                replies += [await self._with_body(command) for command in some]
            elif len(some) == 1:
                replies.append(_reply(await self._post("", _json(some[0]), some)))
            else:
                answers = await self._post("/pipeline", _json(some), some)
                if isinstance(answers, dict):
                    raise _reply(answers)
                if len(answers) != len(some):
                    raise exceptions.InvalidResponse("not as many answers as commands")
                replies += map(_reply, answers)
        return replies

    async def usage(self, timeout_s: float) -> TierUsage:
        """As RedisServer, but up to _USAGE_AGE_S old: every request costs money."""
        if self._usage is None or time.monotonic() - self._usage_at_s > self._USAGE_AGE_S:
            self._usage = await super().usage(timeout_s)
            self._usage_at_s = time.monotonic()
        return self._usage

    async def drop_idle(self) -> None:
        """As RedisServer."""
        await self.close()

    async def close(self) -> None:
        """As RedisServer."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):
                await session.close()

    async def _with_body(self, command: list[Any]) -> Any:
        """Send a command with its one binary argument as the body and the rest as the query."""
        at = next(index for index, part in enumerate(command) if isinstance(part, bytes))
        before, body, after = command[:at], command[at], command[at + 1 :]
        if not _is_text(after):
            raise exceptions.DataError("REST cannot carry a command with two binary arguments")
        path = "".join(f"/{quote(str(part), safe='')}" for part in before)
        query = _query(after)
        return _reply(await self._post(f"{path}?{query}" if query else path, body, [command]))

    async def _post(self, path: str, body: bytes, commands: Sequence[list[Any]]) -> Any:
        headers = {
            "Authorization": f"Bearer {self._token()}",
            "Upstash-Encoding": "base64",
            # A few compressed bytes can become any number of bytes.
            "Accept-Encoding": "identity",
        }
        if self._sync_token:
            headers[self._SYNC_TOKEN] = self._sync_token  # Reads then see our own writes.
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, ssl=self._tls)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, auto_decompress=False
            )
        # Redirects are not followed: they would give the token to another host.
        url = URL(f"{self._url}{path}", encoded=True)
        async with self._session.post(
            url, data=body, headers=headers, allow_redirects=False
        ) as response:
            self._sync_token = response.headers.get(self._SYNC_TOKEN, self._sync_token)
            _check(response.status)
            # Base64 makes four bytes of three.
            ranges = (c[3] - c[2] + 1 for c in commands if c[0] == "GETRANGE")
            most_bytes = self._SLACK_BYTES + sum(ranges) * 4 // 3
            answer = bytearray()
            async for part in response.content.iter_any():
                answer += part
                if len(answer) > most_bytes:
                    raise exceptions.InvalidResponse("more than was asked for")
        if len(answer) < self._INLINE_BYTES:
            return _parsed(answer)
        return await asyncio.to_thread(_parsed, answer)


def _text(part: bytes | str | int) -> bytes | str | int:
    """Return ``part`` as text if it is UTF-8, since JSON can carry text."""
    if not isinstance(part, bytes):
        return part
    try:
        return part.decode()
    except UnicodeDecodeError:
        return part


def _is_text(command: list[Any]) -> bool:
    return not any(isinstance(part, bytes) for part in command)


def _json(body: list[Any]) -> bytes:
    return json.dumps(body).encode()


def _query(after: Sequence[Any]) -> str:
    """Return options like ``EX 60 NX`` as a query."""
    options = []
    words = iter(after)
    for word in words:
        # A flag has no value, not even an empty one.
        is_flag = str(word).upper() in ("NX", "XX", "GET", "KEEPTTL")
        options.append(f"{word}" if is_flag else f"{word}={quote(str(next(words)), safe='')}")
    return "&".join(options)


def _check(status: int) -> None:
    if status in (401, 403):
        raise exceptions.AuthenticationError("the token is refused")
    if status == 429:
        raise TierUnavailable("Redis over REST refuses: too many requests (HTTP status 429)")
    if status not in (200, 400):  # 400 carries the error that Redis returned.
        raise TierUnavailable(f"Redis over REST fails with HTTP status {status}")


def _parsed(answer: bytearray) -> Any:
    """Read JSON, and decode the results in it. Raises InvalidResponse."""
    try:
        read = json.loads(answer)
        for each in read if isinstance(read, list) else [read]:
            if "error" not in each:
                each["result"] = _decoded(each["result"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise exceptions.InvalidResponse("not what the protocol has") from None
    return read


def _decoded(result: Any) -> Any:
    if isinstance(result, str):
        # The one string that is not encoded; no base64 is this short.
        return b"OK" if result == "OK" else base64.b64decode(result, validate=True)
    if isinstance(result, list):
        return [_decoded(each) for each in result]
    return result


def _reply(answer: Any) -> Any:
    """Return the result in ``answer``, or the error that it holds."""
    if "error" not in answer:
        return answer["result"]
    text = str(answer["error"])
    kinds: dict[str, type[Exception]] = {
        "NOPERM": exceptions.NoPermissionError,
        "OOM": exceptions.OutOfMemoryError,
        "READONLY": exceptions.ReadOnlyError,
        "WRONGPASS": exceptions.AuthenticationError,
        "NOAUTH": exceptions.AuthenticationError,
    }
    return kinds.get(text.partition(" ")[0], exceptions.ResponseError)(text)


# ---- From a URL


class AccessUnusable(ValueError):  # noqa: N818 - reads as what it is
    """A file that the connection to Redis needs cannot be used. The text holds no secret."""


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """Credentials and certificates for a server, as far as its URL does not hold them."""

    ca_file: str = ""
    """A file of certificates to trust instead of the system's authorities."""
    password: str = field(default="", repr=False)
    password_file: str = ""
    """A file that is read for each connection, so that the password can change."""
    sentinel_user: str = ""
    sentinel_password: str = field(default="", repr=False)


NO_ACCESS = RedisAccess()


def connect(url: str, access: RedisAccess = NO_ACCESS, *, timeout_s: float = 2.0) -> RedisServer:
    """Return a server for ``url``; it connects when it is first used.

    ``timeout_s`` is how long a connection may take. Raises BadRedisUrl and AccessUnusable.
    """
    address = RedisAddress.parse(url)
    _check_files(access)
    password = _password(address, access)
    if address.kind is RedisKind.REST:
        tls = ssl.create_default_context(cafile=access.ca_file or None)
        where = f"{address.origin}{address.path}"
        return UpstashRestServer(where, password, tls, connect_timeout_s=timeout_s)
    options: dict[str, Any] = {
        "max_connections": _MAX_CONNECTIONS,
        "socket_connect_timeout": timeout_s,
        # The link bounds a call; this is for Python 3.11, where asyncio can lose a cancellation
        # that meets the end of a write.
        "socket_timeout": max(timeout_s, WRITE_TIMEOUT_S),
        "socket_read_size": _READ_BYTES,
        "decode_responses": False,
        # What every server and proxy speaks; version 3 gives this tier nothing.
        "protocol": 2,
        "redis_connect_func": _introduce,
    }
    if address.tls:
        options |= address.tls_options
        if access.ca_file:
            options["ssl_ca_certs"] = access.ca_file
    theirs = {n: value for n, value in options.items() if n.startswith(("socket_", "ssl_"))}
    if address.user or address.password or access.password or access.password_file:
        options["credential_provider"] = _Credentials(address.user, password)
    kind: type[AbstractConnection] = _TlsConnection if address.tls else _TcpConnection
    if address.kind is RedisKind.CLUSTER:
        return ClusterServer(
            address.hosts, {"connection_class": kind, **options}, timeout_s=timeout_s
        )
    options |= {"db": address.db, "retry": Retry(NoBackoff(), 0), "timeout": None}
    if address.kind is RedisKind.SENTINEL:
        theirs |= {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
        if access.sentinel_password:
            theirs["password"] = access.sentinel_password
            theirs["username"] = access.sentinel_user or None
        return SentinelServer(address, options, theirs)
    if address.kind is RedisKind.SOCKET:
        kind, options["path"] = _SocketConnection, address.path
    else:
        [(options["host"], options["port"])] = address.hosts
    return SingleServer(BlockingConnectionPool(connection_class=kind, **options))


class _Credentials(CredentialProvider):
    def __init__(self, user: str, password: Callable[[], str]) -> None:
        self._user, self._password = user, password

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        return (self._user, self._password()) if self._user else (self._password(),)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _password(address: RedisAddress, access: RedisAccess) -> Callable[[], str]:
    if not access.password_file:
        password = address.password or access.password
        return lambda: password
    last = ""

    def read() -> str:
        nonlocal last
        # While the file is being replaced, use the previous password.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            last = Path(access.password_file).read_text().strip()
        return last

    return read


def _check_files(access: RedisAccess) -> None:
    for setting, path in (
        ("redis_password_file", access.password_file),
        ("redis_ca_file", access.ca_file),
    ):
        if not path:
            continue
        try:
            Path(path).read_text()
            if path == access.ca_file:
                ssl.create_default_context(cafile=path)
        except ssl.SSLError:
            raise AccessUnusable(f"{setting}: {path} is not a PEM certificate") from None
        except OSError as failure:
            raise AccessUnusable(f"{setting}: {path}: {failure.strerror}") from None
        except UnicodeDecodeError:
            raise AccessUnusable(f"{setting}: {path} is not UTF-8 text") from None


_AUTH_UNKNOWN = re.compile(r"unknown command ['`]?AUTH\b", re.IGNORECASE)


async def _introduce(connection: AbstractConnection) -> None:
    try:
        await connection.on_connect()
    except exceptions.ResponseError as refusal:
        if not _AUTH_UNKNOWN.search(str(refusal)):
            raise
        # The server knows no AUTH, and its error quotes the password.
        raise exceptions.AuthenticationError from None
    await connection.send_command("CLIENT", "SETNAME", CLIENT_NAME)
    # A name is a courtesy to operators; some services and ACLs refuse CLIENT.
    with contextlib.suppress(exceptions.ResponseError):
        await connection.read_response()


class _Closing(AbstractConnection):
    """A connection that always closes, even where the server hangs or the caller is cancelled.

    With TLS, redis-py waits until the server says goodbye, and then leaves the socket open.
    """

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection."""
        writer = self._writer
        try:
            await super().disconnect(*args, **options)
        finally:
            if writer is not None:
                writer.transport.abort()


class _TcpConnection(_Closing, Connection):
    pass


class _TlsConnection(_Closing, SSLConnection):
    pass


class _SocketConnection(_Closing, UnixDomainSocketConnection):
    pass


class _SentinelConnection(_Closing, SentinelManagedConnection):
    pass


class _SentinelTlsConnection(_Closing, SentinelManagedSSLConnection):
    pass


# ---- What went wrong, in words for operators

_REFUSALS: dict[type[exceptions.ResponseError], str] = {
    exceptions.NoPermissionError: "this user has no permission",
    exceptions.OutOfMemoryError: "it is full: it has reached its maxmemory",
    exceptions.ReadOnlyError: "it is read-only",
    exceptions.ClusterDownError: "the cluster is down",
    exceptions.MasterDownError: "it is a replica that has lost its primary",
}
# https://upstash.com/docs/redis/troubleshooting: for the rest of the day or month.
_USED_UP = re.compile(r"max (daily )?requests? limit exceeded")
_REFUSALS_BY_TEXT = {
    "the requests of the plan are used up": _USED_UP,
    "the request is too large": re.compile(r"max request size exceeded"),
    "it does not know this command": re.compile(r"unknown command"),
    "it cannot save what it holds": re.compile(r"MISCONF"),
    "too few of its replicas follow": re.compile(r"NOREPLICAS"),
}
# Except the name of a command, if it is one that this daemon sends.
_COMMAND = re.compile(
    r"(?:unknown command|to run the) ['`]"
    r"(append|asking|cluster|dbsize|del|eval|exists|expire|get|getrange|hello|info|persist|ping"
    r"|pttl|renamenx|sadd|scan|select|set|setrange|smembers|srem|strlen|ttl|unlink)\b",
    re.IGNORECASE,
)
_WRONG_CREDENTIALS = (
    exceptions.AuthenticationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)


def described(error: Exception) -> TierUnavailable:
    """Return ``error`` as a TierUnavailable, whose text is for logs, callers and Stats."""
    if isinstance(error, TierUnavailable):
        return error  # Described already.
    if isinstance(error, exceptions.ResponseError) and "WRONGTYPE" in str(error):
        return WrongType("a key holds another type of value than this command is for")
    return TierUnavailable(_explained(error))


def _explained(error: Exception) -> str:
    # redis-py wraps errors of connecting, once or twice.
    chain = list(_chain(error))
    if any(isinstance(link, MasterNotFoundError) for link in chain):
        return _no_primary(chain)
    for link in chain:
        if isinstance(link, _WRONG_CREDENTIALS):
            return "Redis refuses the user or password"
        if isinstance(link, exceptions.BusyLoadingError):
            return "Redis is loading its data"
        if isinstance(link, ssl.SSLCertVerificationError):
            why = getattr(link, "verify_message", "") or "it cannot be checked"
            return f"the certificate of Redis is not trusted: {why}"
        if isinstance(link, ssl.SSLError):
            return f"cannot reach Redis: TLS fails ({getattr(link, 'reason', None) or 'no reason'})"
    if is_timeout(error):
        return NO_ANSWER
    if isinstance(error, exceptions.ResponseError):
        return f"Redis refuses: {_refusal(error)}"
    for link in chain:
        if isinstance(link, OSError) and link.strerror:
            return f"cannot reach Redis: {link.strerror}"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return f"cannot reach Redis ({type(chain[-1]).__name__})"
    return f"the server does not speak the Redis protocol ({type(error).__name__})"


def _refusal(error: exceptions.ResponseError) -> str:
    text = str(error)
    command = _COMMAND.search(text)
    about = f" ({command[1].upper()})" if command else ""
    for kind, why in _REFUSALS.items():
        if isinstance(error, kind):
            return why + about
    for why, pattern in _REFUSALS_BY_TEXT.items():
        if pattern.search(text):
            return why + about
    return f"it gives no reason that wasmkilnd knows ({type(error).__name__})"


def _no_primary(chain: Sequence[BaseException]) -> str:
    if any(isinstance(link, _WRONG_CREDENTIALS) for link in chain):
        return "the Sentinels refuse the user or password"
    if any(isinstance(link, exceptions.NoPermissionError) for link in chain):
        return "the Sentinels do not allow this user to run SENTINEL MASTER"
    if any(isinstance(link, exceptions.ResponseError) for link in chain):
        return "the Sentinels know no primary of that name"
    return "no reachable Sentinel names a primary that is up"


def is_timeout(error: Exception) -> bool:
    """Return whether the server did not answer in time, perhaps while connecting."""
    return any(isinstance(link, exceptions.TimeoutError | TimeoutError) for link in _chain(error))


def is_outage(error: Exception) -> bool:
    """Return whether no client can use the server now, rather than it refusing one command.

    A server that returns garbage, which shows as any error at all, is as good as down.
    """
    if isinstance(error, exceptions.ResponseError):
        # Refusals that every command would meet.
        everybody = (*_WRONG_CREDENTIALS, exceptions.ClusterDownError)
        return isinstance(error, everybody) or _USED_UP.search(str(error)) is not None
    return not isinstance(error, PartUnavailable | WrongType)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
