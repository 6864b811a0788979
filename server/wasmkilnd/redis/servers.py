"""Every kind of Redis as one thing that runs commands: ``connect`` makes it of a URL.

``RedisLink`` is the way to it: commands with a time-out, behind a breaker
(``wasmkilnd.waits.budgets``). A write has more time, but ends when the server is asked again, which
closes its connection: its reply may be lost, and other writes wait behind it. One dead node of a
cluster opens nothing, nor does a cancelled call; a reply of another type than its command has is as
good as no answer.

Single servers (TCP, TLS, Unix socket), primaries that Sentinels name, and the nodes of a cluster
are reached with redis-py's connections; Upstash over REST with aiohttp. Replies are as the server
sends them: strings as bytes, whole numbers as int, OK as ``b"OK"``, nothing as None.

No command is retried, and no server bounds the time of a whole call, or how many connections there
are: the link does, and is the only caller. Errors are those of the libraries;
``described`` turns each into a TierUnavailable with a fixed sentence, which never repeats a
server's text: it may quote what the server was sent, even a password.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast
from urllib.parse import quote

import aiohttp
import structlog
from redis import exceptions
from redis.asyncio import connection as redis_py
from redis.crc import key_slot
from yarl import URL

from wasmkilnd import errors
from wasmkilnd.errors import PartUnavailable, TierUnavailable, WrongType, forget_frames
from wasmkilnd.files.threads import on_disk
from wasmkilnd.model import TierUsage
from wasmkilnd.redis_address import RedisAddress, RedisKind
from wasmkilnd.waits.budgets import Breaker

T = TypeVar("T")
# A command and its arguments, for example ``("SET", name, value, "EX", 60)``.
Command: TypeAlias = tuple[bytes | str | int, ...]
# As ``RedisServer.ask``.
Ask: TypeAlias = Callable[[Sequence[Command], float], Awaitable[list[Any]]]
# Host and port.
Node: TypeAlias = tuple[str, int]
# Returns where a connection goes, by the names that redis-py has for it.
Find: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
# Slots, and the nodes that have them, the primary first.
Shards: TypeAlias = dict[range, list[Node]]

# How long all steps of a write may take together (a connection, sending, the reply); a large value
# is written by many.
WRITE_TIMEOUT_S = 10.0
# Of a reply at a time.
_READ_BYTES = 1024 * 1024

_log = structlog.get_logger("wasmkilnd.cache")


class RedisServer(ABC):
    """A server, or several that act as one; safe for concurrent use from one event loop.

    A kind of server defines ``ask``, and closes what it keeps open with ``close``.
    """

    @abstractmethod
    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Return the replies to ``commands``, errors of the server among them.

        One round trip where that is possible, and no transaction; commands on one key run in
        order. The key is a command's first argument (of EVAL, the third). ``timeout_s`` is what
        the caller grants to all of it.
        """

    async def parts(self) -> Sequence[Ask]:
        """Return how to ask each of the servers that have keys of their own."""
        return [self.ask]

    async def close(self) -> None:  # noqa: B027 - some kinds keep nothing open
        """Close every connection, which ends calls under way; never raises.

        A later call connects again.
        """

    async def usage(self, timeout_s: float) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report.

        That is what its user may not ask, and what a node of a cluster has that is down.
        """
        questions: list[Command] = [("DBSIZE",), ("INFO", "memory"), ("INFO", "stats")]
        asked = (ask(questions, timeout_s) for ask in await self.parts())
        total: Counter[bytes] = Counter()
        replies = [*itertools.chain(*await asyncio.gather(*asked))]
        for reply in without_errors(replies, but_refusals=True):
            if isinstance(reply, int):
                total[b"entries"] += reply
            elif isinstance(reply, bytes):
                for name, value in re.findall(rb"^(\w+):(\d{1,18})\r?$", reply, re.MULTILINE):
                    total[name] += int(value)
        told = (b"entries", b"used_memory", b"maxmemory", b"evicted_keys")
        return TierUsage(*(total[name] for name in told))

    async def probe(self, timeout_s: float) -> None:
        """Ask on a new connection whether the server answers, be it by a refusal; raise if not.

        The others are closed: after an outage they look alive, and each costs a time-out.
        """
        await self.close()
        without_errors(await self.ask([("PING",)], timeout_s), but_refusals=True)


def without_errors(replies: list[Any], *, but_refusals: bool = False) -> list[Any]:
    """Return ``replies``; raise the first error among them, or the first that is an outage."""
    for reply in replies:
        if isinstance(reply, Exception) and (not but_refusals or is_outage(reply)):
            raise reply
    return replies


class SingleServer(RedisServer):
    """One server, through redis-py's connections of ``pool``."""

    def __init__(self, pool: redis_py.ConnectionPool) -> None:
        self._pool = pool

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer, in one round trip."""
        # Not by a client or its pipeline: they convert replies, which every caller would undo.
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            replies: list[Any] = []
            for command in commands:
                try:
                    replies.append(await connection.read_response())
                except exceptions.ResponseError as refusal:
                    refusal.add_note(str(command[0]))
                    replies.append(refusal)
        finally:
            await self._pool.release(connection)
        if any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies):
            # This server was the primary once. A new connection goes to the server that its
            # name, its Sentinels or its virtual address stand for now.
            await self.drop_idle()
        return replies

    async def drop_idle(self) -> None:
        """Close the connections that nobody uses now."""
        await self._pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """As RedisServer."""
        with contextlib.suppress(Exception):
            await self._pool.disconnect()


class _OurConnection(redis_py.AbstractConnection):
    """A connection to where ``find`` says at that moment, or else to the usual server.

    It always closes, even where the server hangs or the caller is cancelled: redis-py waits until
    all is sent, and with TLS until the server says goodbye.
    """

    find: Find | None = None

    def _connection_arguments(self) -> Mapping[str, Any]:
        # With asyncio's own 64 KiB, a large reply stops and starts reading at each piece.
        return {**super()._connection_arguments(), "limit": _READ_BYTES}  # type: ignore[misc]

    async def _connect(self) -> None:
        if self.find:
            vars(self).update(await self.find())
        await super()._connect()  # type: ignore[no-untyped-call, safe-super]

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*args, **options)


async def _primary_of(
    service: str, sentinels: Sequence[Callable[[], SingleServer]]
) -> dict[str, str | int]:
    """Return where the primary is, by the Sentinel that tells it first: others may hang.

    Each new connection asks, so those to a primary that died or was demoted are replaced by
    connections to its successor.
    """
    question: list[Command] = [("SENTINEL", "MASTER", service)]
    servers = [connected() for connected in sentinels]
    asked = [asyncio.create_task(server.ask(question, 0)) for server in servers]
    why = ""
    try:
        for told in asyncio.as_completed(asked):
            try:
                [reply] = without_errors(await told)
                state = dict(zip(reply[::2], reply[1::2], strict=True))
                # A Sentinel that lost its peers still names the primary that died.
                if b"down" not in state[b"flags"]:
                    return {"host": state[b"ip"].decode(), "port": int(state[b"port"])}
                why = "the primary is down"
            except Exception as failure:
                why = str(described(failure))
        raise TierUnavailable(f"no Sentinel names a primary: {why}")
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in servers))


class ClusterServer(RedisServer):
    """The cluster to which ``seeds`` belong: each command goes to the node that has its key.

    Calls do not ask a node that failed: commands on its keys raise PartUnavailable, at once from
    the second one on, and commands on other keys work. If every primary is down, TierUnavailable
    is raised. Whenever a command meets a node that is down, or is redirected, a background task
    asks all nodes, some times a second at most, who answers and who has which slots.

    Each node is a SingleServer. redis-py's ``RedisCluster`` is not used: after one lost
    connection every call of it waits until the slots are read again, perhaps from a node that
    hangs; its ASKING may go on another connection than the command; and it asks for COMMAND.
    """

    # A node must time out before the whole call does: else one dead node would pass for an
    # outage of the whole cluster.
    _NODE_SHARE = 0.75
    _MOST_REDIRECTIONS = 5
    _REST_S = 0.25

    def __init__(
        self, seeds: Sequence[Node], connected: Callable[[Node], SingleServer], timeout_s: float
    ) -> None:
        """``timeout_s`` is for the questions after the slots."""
        self._seeds, self._connected, self._timeout_s = seeds, connected, timeout_s
        self._servers = {node: connected(node) for node in seeds}
        # The primary of each slot.
        self._owners: dict[int, Node] = {}
        self._primaries: frozenset[Node] = frozenset()
        # Why each node that fails does.
        self._down: dict[Node, str] = {}
        self._mending: asyncio.Task[str] | None = None

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer: each node gets its commands in one round trip, all at the same time."""
        if not self._owners:
            await self.probe(timeout_s)
        by_node: dict[Node, list[int]] = defaultdict(list)
        replies: list[Any] = [None] * len(commands)
        for index, command in enumerate(commands):
            key = command[3 if command[0] == "EVAL" else 1]
            slot = key_slot(key if isinstance(key, bytes) else str(key).encode())
            if owner := self._owners.get(slot):
                by_node[owner].append(index)
            else:
                self._mend()
                replies[index] = PartUnavailable("no node of the Redis cluster serves this key")

        async def at(node: Node, indices: list[int]) -> None:
            answers = await self._at(node, [commands[index] for index in indices], timeout_s)
            for index, answer in zip(indices, answers, strict=True):
                replies[index] = await self._follow(node, answer, commands[index], timeout_s)

        await asyncio.gather(*(at(node, indices) for node, indices in by_node.items()))
        return replies

    async def parts(self) -> Sequence[Ask]:
        """As RedisServer: the primaries."""
        if not self._owners:
            await self.probe(self._timeout_s)
        return [partial(self._at, node) for node in sorted(self._primaries)]

    async def probe(self, timeout_s: float) -> None:
        """As RedisServer: one primary is enough, if it considers the cluster up."""
        if self._owners:  # Else several first calls may be asking.
            await self.close()
        if why := await self._look():
            raise TierUnavailable(f"no primary of the Redis cluster answers: {why}")

    async def close(self) -> None:
        """As RedisServer."""
        if self._mending:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def _at(self, node: Node, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """Return the replies of ``node``: to each command why it is down if it is."""
        why = self._down.get(node, "")
        if not why:
            server = self._servers.get(node) or self._connected(node)
            self._servers[node] = server
            try:
                async with asyncio.timeout(timeout_s * self._NODE_SHARE):
                    return without_errors(await server.ask(commands, timeout_s), but_refusals=True)
            except Exception as error:
                why = str(described(error))
            self._note(self._down | {node: why})
            await server.drop_idle()
        self._mend()
        is_last = self._down.keys() >= self._primaries
        kind = TierUnavailable if is_last else PartUnavailable
        return [kind(f"a node of the Redis cluster is down: {why}")] * len(commands)

    async def _follow(self, node: Node, reply: Any, command: Command, timeout_s: float) -> Any:
        """Return ``reply`` of ``node``, or that of the node to which it redirects ``command``."""
        for _ in range(self._MOST_REDIRECTIONS):
            if not isinstance(reply, exceptions.AskError):  # MovedError is one.
                break
            node = _node(reply.host, reply.port, node)
            self._mend()
            # In one round trip, so that both go on the same connection. A node to which the slot
            # has moved needs no ASKING, and does not mind it.
            *_, reply = await self._at(node, [("ASKING",), command], timeout_s)
        return reply

    async def _look(self, rest_s: float = 0) -> str:
        """Ask every node for the slots; return why no primary answers if that is so."""
        nodes, before = list(self._servers), self._down
        told = dict(zip(nodes, await asyncio.gather(*map(self._slots_by, nodes)), strict=True))
        failed = {node: why for node, why in told.items() if isinstance(why, str)}
        # What most of them say.
        why = max(failed.values(), key=[*failed.values()].count, default="no node has a slot")
        answers = (each for each in told.values() if each and not isinstance(each, str))
        for shards in itertools.islice(answers, 1):
            self._owners = {slot: nodes[0] for slots, nodes in shards.items() for slot in slots}
            self._primaries = frozenset(self._owners.values())
            known = {*self._seeds, *itertools.chain(*shards.values())}
            self._servers |= {node: self._connected(node) for node in known - self._servers.keys()}
            for node in self._servers.keys() - known:
                await self._servers.pop(node).close()
        # Who failed in the meantime may have answered before.
        failed |= {node: why for node, why in self._down.items() if node not in before}
        self._note(failed)
        await asyncio.sleep(rest_s)
        return why if self._down.keys() >= self._primaries else ""

    async def _slots_by(self, node: Node) -> Shards | str:
        """Return which nodes have which slots, as ``node`` tells, or why it is not to be asked."""
        questions: list[Command] = [("CLUSTER", "SLOTS"), ("CLUSTER", "INFO")]
        try:
            async with asyncio.timeout(self._timeout_s * self._NODE_SHARE):
                slots, info = await self._servers[node].ask(questions, self._timeout_s)
            # This user may not be allowed to see the information.
            if isinstance(info, bytes) and b"cluster_state:fail" in info:
                raise exceptions.ClusterDownError("")
            return {
                range(first, last + 1): [_node(host, port, node) for host, port, *_ in shard]
                for first, last, *shard in without_errors([slots])[0]
                if shard
            }
        except Exception as error:
            return str(described(error))

    def _note(self, failed: dict[Node, str]) -> None:
        """Note which primaries fail, and log what is new."""
        down = {node: why for node, why in failed.items() if node in self._primaries}
        for host, port in down.keys() - self._down.keys():
            _log.warning("cluster node is down", node=f"{host}:{port}", detail=down[host, port])
        for host, port in self._down.keys() - down.keys():
            again = "is up again" if (host, port) in self._primaries else "was replaced"
            _log.info(f"cluster node {again}", node=f"{host}:{port}")
        self._down = down

    def _mend(self) -> None:
        """Look in the background."""
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._look(self._REST_S))


def _node(host: bytes | str | None, port: Any, told_by: Node) -> Node:
    """Return a node as another one names it: a host that it does not know is its own."""
    name = host.decode() if isinstance(host, bytes) else host
    return (name if name and name != "?" else told_by[0]), int(port)


class UpstashRestServer(RedisServer):
    """The database at ``url``; each request carries the token that ``token`` returns.

    The library ``upstash-redis`` is not used: it sends commands as JSON and decodes replies as
    UTF-8, so it cannot carry the bytes of an artifact either way, and it has no time-outs. The
    protocol itself can: a binary argument is the body of a request, and replies come in base64.
    See https://upstash.com/docs/redis/features/restapi.
    """

    _USAGE_AGE_S = 300.0

    def __init__(self, url: str, token: Callable[[], str], tls: ssl.SSLContext) -> None:
        self._url, self._token, self._tls = url.rstrip("/"), token, tls
        self._sync_token = ""
        self._usage, self._usage_at_s = TierUsage(), -self._USAGE_AGE_S

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer: one request, but one for each command with a binary argument."""
        texts = [_texts(command) for command in commands]
        if all(texts):
            return await self._post("/pipeline", json.dumps(texts).encode())
        if len(commands) == 1:
            return await self._post(*_with_body(commands[0]))
        each = [await self.ask([command], timeout_s) for command in commands]
        return list(itertools.chain(*each))

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        return aiohttp.ClientSession(connector=connector, auto_decompress=False)

    async def usage(self, timeout_s: float) -> TierUsage:
        """As RedisServer, but up to _USAGE_AGE_S old: every request costs money."""
        if time.monotonic() - self._usage_at_s > self._USAGE_AGE_S:
            self._usage = await super().usage(timeout_s)
            self._usage_at_s = time.monotonic()
        return self._usage

    async def close(self) -> None:
        """As RedisServer."""
        with contextlib.suppress(Exception):
            await self.__dict__.pop("_session").close()

    async def _post(self, path: str, body: bytes) -> list[Any]:
        """Return the replies; to a pipeline that is refused as a whole, one."""
        headers = {
            "Authorization": f"Bearer {self._token()}",
            "Upstash-Encoding": "base64",
            # A few compressed bytes can become any number of bytes.
            "Accept-Encoding": "identity",
            # Reads then see our own writes. It is empty at first, as in Upstash's own clients.
            "Upstash-Sync-Token": self._sync_token,
        }
        # Redirects are not followed: they would give the token to another host.
        url = URL(f"{self._url}{path}", encoded=True)
        sent = self._session.post(url, data=body, headers=headers, allow_redirects=False)
        async with sent as response:
            self._sync_token = response.headers.get("Upstash-Sync-Token", self._sync_token)
            if response.status in (401, 403):
                raise exceptions.AuthenticationError("the token is refused")
            if response.status not in (200, 400):  # 400 carries the error that Redis returned.
                raise TierUnavailable(f"Redis over REST fails with HTTP status {response.status}")
            answer = await response.read()
        replies = await asyncio.to_thread(json.loads, answer, object_hook=_reply)
        return replies if isinstance(replies, list) else [replies]


def _texts(command: Command) -> list[str | int]:
    """Return ``command`` for JSON; nothing if an argument is not UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        return [part.decode() if isinstance(part, bytes) else part for part in command]
    return []


def _with_body(command: Command) -> tuple[str, bytes]:
    """Return the path of a command and its last argument of bytes, which is sent as the body."""
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    at = max(index for index, part in enumerate(command) if isinstance(part, bytes))
    path = "".join(f"/{quote(part, safe='')}" for part in parts[:at])
    # What follows is the query: each number is the value of the option before it.
    query = re.sub(rb" (?=\d)", b"=", b" ".join(parts[at + 1 :])).replace(b" ", b"&").decode()
    return f"{path}?{query}" if query else path, parts[at]


def _reply(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        return redis_py.DefaultParser.parse_error(str(answer["error"]))  # type: ignore[no-untyped-call]
    return _decoded(answer["result"])


def _decoded(result: Any) -> Any:
    if isinstance(result, str):
        # The one string that is not encoded; no base64 is this short.
        return b"OK" if result == "OK" else base64.b64decode(result, validate=True)
    return [_decoded(each) for each in result] if isinstance(result, list) else result


# ---- From a URL


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """Credentials and certificates for a server, as far as its URL does not hold them."""

    # A file of certificates to trust instead of the system's authorities.
    ca_file: str = ""
    password: str = field(default="", repr=False)
    # A file that is read for each connection, so that the password can change.
    password_file: str = ""


NO_ACCESS = RedisAccess()


def connect(
    url: str, access: RedisAccess = NO_ACCESS, *, timeout_s: float = 2.0, find: Find | None = None
) -> RedisServer:
    """Return a server for ``url``, or for where ``find`` says; it connects when it is first used.

    ``timeout_s`` is how long a connection may take. Raises BadRedisUrl, and CannotUse for files
    that have to be there by now: not those of a server that is still to be found.
    """
    address = RedisAddress.parse(url)
    if not find:
        check_files(access)
    ours = _Credentials(address.user, address.password or access.password, access.password_file)
    if address.kind is RedisKind.REST:
        tls = ssl.create_default_context(cafile=access.ca_file or None)
        return UpstashRestServer(f"{address.origin}{address.path}", ours.password, tls)
    options: dict[str, Any] = {
        "socket_connect_timeout": timeout_s,
        # The link bounds a call; this is for Python 3.11, where asyncio can lose a cancellation
        # that meets the end of a write.
        "socket_timeout": max(timeout_s, WRITE_TIMEOUT_S),
        # Large reads take half the time of those with redis-py's default of 32 KiB
        # (docs/explanation/performance.md).
        "socket_read_size": _READ_BYTES,
        # What every server and proxy speaks; version 3 gives this tier nothing.
        "protocol": 2,
        "redis_connect_func": _introduce,
        "credential_provider": ours,
        **address.tls_options,
    }
    kind: Any = redis_py.SSLConnection if address.tls else redis_py.Connection
    if address.tls and access.ca_file:
        options["ssl_ca_certs"] = access.ca_file
    if address.kind is RedisKind.SOCKET:
        kind, options["path"] = redis_py.UnixDomainSocketConnection, address.path

    def server(node: Node | None = None, find: Find | None = None, **more: Any) -> SingleServer:
        ours = type("Connection", (_OurConnection, kind), {"find": find and staticmethod(find)})
        where = {"host": node[0], "port": node[1]} if node else {}
        pool = redis_py.ConnectionPool(connection_class=ours, **options | where | more)
        return SingleServer(pool)

    if address.kind is RedisKind.CLUSTER:
        return ClusterServer(address.hosts, server, timeout_s)
    if address.kind is RedisKind.SENTINEL:
        theirs = _Credentials(*address.sentinel)
        sentinels = [partial(server, node, credential_provider=theirs) for node in address.hosts]
        find = partial(_primary_of, address.service, sentinels)
        return server(find=find, db=address.db)
    return server(next(iter(address.hosts), None), find, db=address.db)


class _Credentials:
    """A user and a password for redis-py; if there is a file, it is read for each connection."""

    def __init__(self, user: str, password: str, file: str = "") -> None:
        self._user, self._password, self._file = user, password, file

    def __bool__(self) -> bool:
        return bool(self._user or self._password or self._file)

    def password(self) -> str:
        # While the file is being replaced, use the previous password.
        if self._file:
            with contextlib.suppress(OSError):
                self._password = Path(self._file).read_text(errors="replace").strip()
        return self._password

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        password = await on_disk(self.password)
        return (self._user, password) if self._user else (password,)


def check_files(access: RedisAccess) -> None:
    setting, path = "redis_password_file", access.password_file
    try:
        if path:
            Path(path).read_bytes()
        setting, path = "redis_ca_file", access.ca_file
        if path:
            ssl.create_default_context(cafile=path)
    except OSError as failure:
        is_other = isinstance(failure, ssl.SSLError)
        why = "it is not a PEM certificate" if is_other else failure.strerror
        raise errors.CannotUse(f"{setting}: {path}: {why}") from None


async def _introduce(connection: redis_py.AbstractConnection) -> None:
    await connection.on_connect()
    await connection.send_command("CLIENT", "SETNAME", "wasmkiln")
    # A name is a courtesy to operators; some services and ACLs refuse CLIENT.
    with contextlib.suppress(exceptions.ResponseError):
        await connection.read_response()


# ---- What went wrong, in words for operators

# For a server that accepts connections and does not answer.
NO_ANSWER = "Redis does not answer in time"

_CREDENTIALS = "Redis refuses the user or password"
_CLUSTER_DOWN = "Redis refuses: the cluster, or the primary of this replica, is down"
_USED_UP = "Redis refuses: the requests of the plan are used up"

# The first line that fits the error, or what caused it: its type, a pattern for its text, and the
# sentence. No sentence repeats what a server said.
_SENTENCES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    (exceptions.AuthenticationError, "", _CREDENTIALS),
    (exceptions.ResponseError, r"(?i)unknown command ['`]?AUTH\b", _CREDENTIALS),
    (exceptions.BusyLoadingError, "", "Redis is loading its data"),
    (ssl.SSLCertVerificationError, "", "the certificate of Redis is not trusted: {error.strerror}"),
    ((exceptions.TimeoutError, TimeoutError), "", NO_ANSWER),
    (exceptions.NoPermissionError, "", "Redis refuses: this user has no permission{command}"),
    (exceptions.OutOfMemoryError, "", "Redis refuses: it is full: it has reached its maxmemory"),
    (exceptions.ReadOnlyError, "", "Redis refuses: it is read-only"),
    (exceptions.ClusterDownError, "", _CLUSTER_DOWN),
    # https://upstash.com/docs/redis/troubleshooting: for the rest of the day or month.
    (exceptions.ResponseError, "max (daily )?requests? limit exceeded", _USED_UP),
    (exceptions.ResponseError, "unknown command", "Redis refuses: it has no such command{command}"),
    (exceptions.ResponseError, "MISCONF|NOREPL", "Redis refuses: it cannot save or replicate now"),
    (exceptions.ResponseError, "No such master", "Redis refuses: it knows no primary of that name"),
    (exceptions.ResponseError, "", "Redis refuses: it gives no known reason ({why})"),
    # Not asyncio's own words, which quote the address to callers.
    (OSError, r"\[Errno 111\]", "cannot reach Redis: the connection is refused"),
    (OSError, "Connect call failed", "cannot reach Redis: no network leads to it"),
    (OSError, r"^\[", "cannot reach Redis: {error.strerror}"),
    ((exceptions.ConnectionError, OSError), "", "cannot reach Redis ({why})"),
    (Exception, "", "the server does not speak the Redis protocol ({why})"),
)


# Of Redis for a string (proto-max-bulk-len), and of Upstash for a record or a request.
_TOO_LARGE = re.compile("string exceeds maximum allowed size|max (single record|request) size")


def described(error: Exception) -> TierUnavailable:
    """Return ``error`` as a TierUnavailable, whose text is for logs, callers and Stats.

    ``error`` itself is not to be read any more: it loses its traceback and what caused it.
    """
    # redis-py wraps errors of connecting, once or twice; the first is the one that tells most.
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.insert(0, cause)
        above = None if cause.__suppress_context__ else cause.__context__
        # Not what a caller handles while it runs the command.
        cause = cause.__cause__ or (None if isinstance(above, TierUnavailable) else above)
    forget_frames(error)  # Frames hold values, and libraries keep their errors.
    for link in chain:
        if isinstance(link, TierUnavailable):
            return link  # Described already.
    if isinstance(error, exceptions.ResponseError) and "WRONGTYPE" in str(error):
        return WrongType("a key holds another type of value than this command is for")
    if isinstance(error, exceptions.ResponseError) and _TOO_LARGE.search(str(error)):
        return errors.DoesNotFit("Redis refuses: the value is larger than a value may be there")
    command = "".join(f" ({name})" for name in getattr(error, "__notes__", ()))
    return next(
        TierUnavailable(sentence.format(error=link, why=type(link).__name__, command=command))
        for kinds, pattern, sentence in _SENTENCES
        for link in chain
        if isinstance(link, kinds) and re.search(pattern, str(link))
    )


def is_outage(error: Exception) -> bool:
    """Return whether no client can use the server now, rather than it refusing one command.

    A server that returns garbage, which shows as any error at all, is as good as down.
    """
    if isinstance(error, exceptions.ResponseError):
        # Refusals that every command would meet.
        return str(described(error)) in (_CREDENTIALS, _CLUSTER_DOWN, _USED_UP)
    return not isinstance(error, PartUnavailable | WrongType)


# ---- The way there

_NUMBERS = "APPEND EXISTS EXPIRE PERSIST RENAMENX SADD STRLEN TTL UNLINK"
_LISTS = dict.fromkeys(("SCAN", "SRANDMEMBER"), list)
# What the replies to a command are. Those to a script, and to any other command, may be anything.
_TYPES: dict[Any, type] = dict.fromkeys(_NUMBERS.split(), int) | _LISTS | {"GETRANGE": bytes}
# At a time: each needs a connection to each server that it asks.
_MOST_CALLS = 32


class RedisLink(Breaker):
    """Runs commands on ``server``, and closes it at the end.

    Safe for concurrent use from one event loop. Every method raises TierUnavailable, and no
    other error, if the server fails or does not answer within ``timeout_s``: WrongType for a key
    of another type, PartUnavailable for one dead node of a cluster.
    """

    tier = "redis"

    def __init__(self, server: RedisServer, *, timeout_s: float = 2.0) -> None:
        super().__init__(timeout_s=timeout_s)
        self._server = server
        self._calls = asyncio.Semaphore(_MOST_CALLS)

    async def run(self, *commands: Command, timeout_s: float | None = None) -> list[Any]:
        """Run ``commands``, in one round trip where the server allows it; return their replies.

        Strings are bytes, whole numbers int, OK is ``b"OK"``, nothing is None. The first error
        among the replies is raised. ``timeout_s`` bounds all steps together, instead of the
        link's own time-out: a write passes WRITE_TIMEOUT_S.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return await self._ask(self._server.ask, commands, timeout_s) if commands else []

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return the keys that match ``pattern``, in pages; a page may be empty.

        Includes each key that exists during the whole scan; some may come twice. Each page has
        its own time-out.
        """
        for ask in await self._call(self._server.parts, self.timeout_s):
            cursor = cast("Any", None)
            while cursor is None or int(cursor):
                command: Command = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", 1000)
                [(cursor, page)] = await self._ask(ask, [command], self.timeout_s)
                yield page

    async def usage(self) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report."""
        return await self._call(lambda: self._server.usage(self.timeout_s), self.timeout_s)

    def replace(self, server: RedisServer) -> None:
        """Use ``server`` from now on; commands that are running end on the previous one."""
        self.begin(self._retire(self._server))
        self._server = server

    async def close(self) -> None:
        """Close every connection; never raises."""
        await self.stop()
        await self._server.close()

    async def probe(self) -> None:
        """Ask the server anything."""
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._server.probe(self.timeout_s)
        except Exception as error:
            raise described(error) from None

    async def _retire(self, server: RedisServer) -> None:
        try:
            # No call takes longer, except a scan, which then fails with TierUnavailable.
            await asyncio.sleep(max(self.timeout_s, WRITE_TIMEOUT_S))
        finally:
            await server.close()

    async def _ask(self, ask: Ask, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        async def replies() -> list[Any]:
            told = without_errors(await ask(commands, timeout_s))
            expected = [_TYPES.get(command[0], object) for command in commands]
            if len(told) != len(commands) or not all(map(isinstance, told, expected)):
                raise TypeError("the server returned a reply of another type")
            return told

        return await self._call(replies, timeout_s)

    async def _call(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        self.check()
        async with self._calls:  # Such a wait says nothing of the server.
            self.check()
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await work()
            except Exception as error:
                # Not `from error`: a traceback in a log would contain its secrets.
                raise self._described(error) from None
        self.answered()
        return answer

    def _described(self, error: Exception) -> TierUnavailable:
        failure = described(error)
        if is_outage(error):
            self.failed(str(failure), late=str(failure) == NO_ANSWER)
        else:
            self.answered(done=False)  # A refusal is an answer.
        return failure
