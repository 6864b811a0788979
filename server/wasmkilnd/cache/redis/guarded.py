"""The Redis commands that this daemon uses, each with a time-out and behind the breaker."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from redis.exceptions import ResponseError

from wasmkilnd.cache.redis.breaker import Breaker
from wasmkilnd.cache.redis.errors import explain, is_outage, is_timeout
from wasmkilnd.cache.redis.server import Command, RedisServer
from wasmkilnd.errors import WrongType, forget_frames
from wasmkilnd.model import TierUsage

T = TypeVar("T")

Asked: TypeAlias = "tuple[Callable[[object], Any], Command]"
"""A command, and the function that converts its reply, or raises for a malformed one."""

# A server is prompt if it answers within this fraction of the time-out.
_PROMPT = 4

FOR_EVER = 0
"""Instead of a time to live: none."""

_WRONG_TYPE = "WRONGTYPE"

# No caller waits for a write, so all of its steps together (a connection, sending, the reply) may
# take this long. The client bounds each step by ``timeout_s``, except sending to a REST API.
STORE_TIMEOUT_S = 10.0


class GuardedRedis:
    """Runs commands on ``server``, and closes it at the end.

    Other clients may write to the server too, so no more of a value is read than the caller asks
    for. Safe for concurrent use from one event loop. Every method raises TierUnavailable, and no
    other error, if the server fails or does not answer within ``timeout_s``. For writes the limit
    is ``store_timeout_s`` if that is longer, and a scan has the limit for each page. The error is
    WrongType if a key holds another type than a string.
    """

    def __init__(
        self,
        server: RedisServer,
        *,
        timeout_s: float = 2.0,
        store_timeout_s: float = STORE_TIMEOUT_S,
        first_wait_s: float = 0.25,
        longest_wait_s: float = 10.0,
    ) -> None:
        self._server = server
        self._retiring: set[asyncio.Task[None]] = set()
        self.timeout_s = timeout_s
        self._store_timeout_s = max(timeout_s, store_timeout_s)
        self._asked_at_s: dict[object, float] = {}
        self._answered_at_s = -timeout_s
        self._answer_took_s = timeout_s
        self.breaker = Breaker(
            "redis",
            self._probe,
            self._is_outage,
            explain,
            first_wait_s=first_wait_s,
            longest_wait_s=longest_wait_s,
        )

    @property
    def is_one_place(self) -> bool:
        """Whether commands on any keys are one round trip, and fail or succeed together."""
        return self._server.is_one_place

    @property
    def prompt(self) -> bool:
        """Whether the server now answers each command well within the time-out."""
        now = time.monotonic()
        longest_s = max(
            self._answer_took_s,
            now - self._answered_at_s,
            now - min(self._asked_at_s.values(), default=now),
        )
        return longest_s < self.timeout_s / _PROMPT

    async def run(self, asked: Sequence[Asked], timeout_s: float | None = None) -> list[Any]:
        """Run commands in one round trip; return their converted replies."""

        async def run() -> list[Any] | None:
            this, began = object(), time.monotonic()
            self._asked_at_s[this] = began
            try:
                answers = await self._server.run([command for _, command in asked])
            except ResponseError as error:
                if _WRONG_TYPE in str(error):
                    forget_frames(error)
                    return None
                raise
            finally:
                del self._asked_at_s[this]
            self._answered_at_s = time.monotonic()
            self._answer_took_s = self._answered_at_s - began
            # Converted inside the guarded call: a server that returns garbage is as good
            # as down, and the breaker must see it.
            pairs = zip(asked, answers, strict=True)
            return [convert(answer) for (convert, _), answer in pairs]

        if not asked:
            return []
        converted = await self._call(run, timeout_s)
        if converted is None:
            raise WrongType("a key holds another type of value than a string")
        return converted

    async def beginnings(self, keys: Sequence[bytes], lengths: Sequence[int]) -> list[bytes]:
        """Return the first bytes of each value, as many as ``lengths`` says; empty for no value."""
        wanted = zip(keys, lengths, strict=True)
        return await self._each(as_bytes, [beginning(key, length) for key, length in wanted])

    async def beginnings_with_ttls(
        self, keys: Sequence[bytes], length: int
    ) -> list[tuple[bytes, int]]:
        """Return the first bytes of each value and its TTL in seconds (-1: none, -2: no value)."""
        asked: list[Asked] = []
        for key in keys:
            asked += [(as_bytes, beginning(key, length)), (as_number, ("TTL", key))]
        replies = await self.run(asked)
        return list(zip(replies[::2], replies[1::2], strict=True))

    async def set(self, key: bytes, value: bytes, ttl_s: int) -> None:
        """Store ``value`` under ``key`` for ``ttl_s`` seconds; for ever if that is FOR_EVER."""
        command: Command = ("SET", key, value)
        if ttl_s != FOR_EVER:
            command = (*command, "EX", ttl_s)
        await self._each(as_stored, [command], self._store_timeout_s)

    async def add(self, key: bytes, value: bytes, ttl_s: int) -> bool:
        """Store ``value`` for ``ttl_s`` seconds if nothing is there; return whether it was."""
        store: Command = ("SET", key, value, "EX", ttl_s, "NX")
        return bool((await self._each(as_done, [store], self._store_timeout_s))[0])

    async def delete(self, keys: Sequence[bytes]) -> list[bool]:
        """Delete each of ``keys``; return which existed."""
        return await self._each(as_flag, [("UNLINK", key) for key in keys])

    async def delete_if(self, key: bytes, value: bytes, others: Sequence[bytes] = ()) -> bool:
        """Delete ``key`` and ``others`` if ``key`` holds exactly ``value``; return whether it did.

        ``others`` must be in the same slot of a cluster as ``key``.
        """
        digest = hashlib.sha1(value, usedforsecurity=False).hexdigest()
        script: Command = ("EVAL", _DELETE_IF, 1 + len(others), key, *others, digest, len(value))
        return (await self._each(as_flag, [script]))[0]

    async def exists(self, keys: Sequence[bytes]) -> list[bool]:
        """Return for each of ``keys`` whether it exists."""
        return await self._each(as_flag, [("EXISTS", key) for key in keys])

    async def lengths(self, keys: Sequence[bytes]) -> list[int]:
        """Return the length of each value in bytes; 0 for no value."""
        return await self._each(as_number, [("STRLEN", key) for key in keys])

    async def ages(self, keys: Sequence[bytes]) -> list[int]:
        """Return the TTL of each of ``keys`` in seconds; -1 for none, -2 for no value."""
        return await self._each(as_number, [("TTL", key) for key in keys])

    async def prolong(self, keys: Sequence[bytes], ttl_s: int) -> None:
        """Set the TTL of each of ``keys`` that exists to ``ttl_s`` seconds."""
        await self._each(as_flag, [("EXPIRE", key, ttl_s) for key in keys])

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return the keys that match ``pattern``, in pages; a page may be empty.

        Includes each key that exists during the whole scan; some may come twice.
        """
        pages = self._server.scan(pattern)

        async def next_page() -> list[bytes] | None:
            page = await anext(pages, None)
            return None if page is None else [as_bytes(key) for key in page]

        while (page := await self._call(next_page)) is not None:
            yield page

    async def usage(self) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report."""
        return await self._call(self._server.usage)

    def replace(self, server: RedisServer) -> None:
        """Use ``server`` from now on; commands that are running end on the previous one."""
        retiring = asyncio.create_task(self._retire(self._server))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        self._server = server

    async def close(self) -> None:
        """Close every connection; never raises."""
        await self.breaker.close()
        for retiring in self._retiring:
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._server.close()

    async def _retire(self, server: RedisServer) -> None:
        try:
            # No call takes longer, except a scan, which then fails with TierUnavailable.
            await asyncio.sleep(self._store_timeout_s)
        finally:
            await server.close()

    async def _call(self, work: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(self.timeout_s if timeout_s is None else timeout_s):
                answer = await work()
            self._answered_at_s = time.monotonic()
            return answer

        return await self.breaker.call(bounded)

    async def _each(
        self,
        convert: Callable[[object], T],
        commands: Sequence[Command],
        timeout_s: float | None = None,
    ) -> list[T]:
        return await self.run([(convert, command) for command in commands], timeout_s)

    def _is_outage(self, error: Exception) -> bool:
        if is_timeout(error) and time.monotonic() - self._answered_at_s < self.timeout_s / 2:
            return False  # The server answered others meanwhile: this daemon or one reply is slow.
        return is_outage(error)

    async def _probe(self) -> None:
        async with asyncio.timeout(self.timeout_s):
            await self._server.probe()


# A value that was replaced since it was rejected must not be deleted.
_DELETE_IF = """
if redis.sha1hex(redis.call('getrange', KEYS[1], 0, ARGV[2])) ~= ARGV[1] then return 0 end
for _, key in ipairs(KEYS) do redis.call('unlink', key) end
return 1
"""


def beginning(key: bytes, length: int) -> Command:
    return "GETRANGE", key, 0, length - 1


def as_bytes(reply: object) -> bytes:
    if type(reply) is bytes:
        return reply
    raise TypeError("the server returned something other than bytes")


def as_number(reply: object) -> int:
    if isinstance(reply, int):
        return int(reply)
    raise TypeError("the server returned something other than a number")


def as_flag(reply: object) -> bool:
    return bool(as_number(reply))


def as_stored(reply: object) -> None:
    if not as_done(reply):
        raise TypeError("the server returned something other than OK")


def as_done(reply: object) -> bool:
    if reply in (b"OK", "OK") or reply is True:
        return True
    if reply is None or reply is False:
        return False
    raise TypeError("the server returned something other than OK")


async def read_strings(
    names: Sequence[bytes], read: Callable[[Sequence[bytes]], Awaitable[list[T]]]
) -> tuple[dict[bytes, T], frozenset[bytes]]:
    """Return what ``read`` reads of the strings among ``names``, and the names of other types.

    Others may write to the server, and one key of another type makes a read of many fail: this
    finds such keys by halving. Raises TierUnavailable.
    """
    try:
        return dict(zip(names, await read(names), strict=True)), frozenset()
    except WrongType:
        if len(names) == 1:
            return {}, frozenset(names)
    middle = len(names) // 2
    found, others = await read_strings(names[:middle], read)
    more, other = await read_strings(names[middle:], read)
    return found | more, others | other
