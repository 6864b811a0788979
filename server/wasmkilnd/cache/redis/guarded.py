"""The few Redis commands that the tier needs, each bounded in time and behind the breaker."""

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

# A command, and what makes sure that its answer is one: it raises for what is none.
Asked: TypeAlias = "tuple[Callable[[object], Any], Command]"

# Who answers in a quarter of the time-out is no reason to wait.
_PROMPT = 4

_WRONG_TYPE = "WRONGTYPE"

# For a write nobody waits: it may take what a slow line needs for one piece.
STORE_TIMEOUT_S = 10.0


class GuardedRedis:
    """Speaks to ``server``, which it owns from now on.

    Others may write to it too: no more is read of a value than the caller asks for. Safe
    for concurrent use from one event loop. Every method raises TierUnavailable, and no other
    error, when the server does not do its part within ``timeout_s`` (for writes
    ``store_timeout_s``, or ``timeout_s`` where that is longer; for a scan each round):
    WrongType, where a key holds something else than a string.
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
        """Whether the server answers far within the time-out, now, whatever it is asked."""
        now = time.monotonic()
        longest_s = max(
            self._answer_took_s,
            now - self._answered_at_s,
            now - min(self._asked_at_s.values(), default=now),
        )
        return longest_s < self.timeout_s / _PROMPT

    async def run(self, asked: Sequence[Asked], timeout_s: float | None = None) -> list[Any]:
        """Run commands in one round trip; return what their answers are converted to."""

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
            # Converted inside the guarded call: a server that answers garbage is as good
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
        """Return the beginning of each value, of the length that stands at its place.

        It is empty where there is no value.
        """
        wanted = zip(keys, lengths, strict=True)
        return await self._each(as_bytes, [beginning(key, length) for key, length in wanted])

    async def beginnings_with_ttls(
        self, keys: Sequence[bytes], length: int
    ) -> list[tuple[bytes, int]]:
        """Return the beginning of each value, and the seconds that it has left (-1 for ever)."""
        asked: list[Asked] = []
        for key in keys:
            asked += [(as_bytes, beginning(key, length)), (as_number, ("TTL", key))]
        told = await self.run(asked)
        return list(zip(told[::2], told[1::2], strict=True))

    async def set(self, key: bytes, value: bytes, ttl_s: int) -> None:
        """Store ``value`` under ``key`` for ``ttl_s`` seconds."""
        await self._each(as_stored, [("SET", key, value, "EX", ttl_s)], self._store_timeout_s)

    async def add(self, key: bytes, value: bytes, ttl_s: int) -> bool:
        """Store ``value`` for ``ttl_s`` seconds if nothing is there; return whether that was so."""
        store: Command = ("SET", key, value, "EX", ttl_s, "NX")
        return bool((await self._each(as_done, [store], self._store_timeout_s))[0])

    async def delete(self, keys: Sequence[bytes]) -> list[bool]:
        """Delete each of ``keys``; answer which existed."""
        return await self._each(as_flag, [("UNLINK", key) for key in keys])

    async def delete_if(self, key: bytes, value: bytes, others: Sequence[bytes] = ()) -> bool:
        """Delete ``key`` and ``others`` if exactly ``value`` is under ``key``; answer whether so.

        The others have to be in the same slot of a cluster.
        """
        digest = hashlib.sha1(value, usedforsecurity=False).hexdigest()
        script: Command = ("EVAL", _DELETE_IF, 1 + len(others), key, *others, digest, len(value))
        return (await self._each(as_flag, [script]))[0]

    async def exists(self, keys: Sequence[bytes]) -> list[bool]:
        """Return for each of ``keys`` whether it is stored."""
        return await self._each(as_flag, [("EXISTS", key) for key in keys])

    async def lengths(self, keys: Sequence[bytes]) -> list[int]:
        """Return the bytes of each value; 0 where there is none."""
        return await self._each(as_number, [("STRLEN", key) for key in keys])

    async def ages(self, keys: Sequence[bytes]) -> list[int]:
        """Return how many seconds each of ``keys`` has left; -1 for ever, -2 if it is not there."""
        return await self._each(as_number, [("TTL", key) for key in keys])

    async def prolong(self, keys: Sequence[bytes], ttl_s: int) -> None:
        """Let each of ``keys`` that is stored live ``ttl_s`` seconds from now on."""
        await self._each(as_flag, [("EXPIRE", key, ttl_s) for key in keys])

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return the keys that match, batch by batch, some perhaps twice.

        Each that is there from begin to end is among them. A batch may be empty.
        """
        pages = self._server.scan(pattern)

        async def next_page() -> list[bytes] | None:
            page = await anext(pages, None)
            return None if page is None else [as_bytes(key) for key in page]

        while (page := await self._call(next_page)) is not None:
            yield page

    async def usage(self) -> TierUsage:
        """Return what the server says about itself; zeros for what it does not tell."""
        return await self._call(self._server.usage)

    def replace(self, server: RedisServer) -> None:
        """Speak to ``server`` from now on; calls under way end with the one before."""
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
            # No call takes longer, but for a scan, which is then told that the tier fails.
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
            return False  # Others were answered meanwhile: it is we, or one answer, that is slow.
        return is_outage(error)

    async def _probe(self) -> None:
        async with asyncio.timeout(self.timeout_s):
            await self._server.probe()


# Who judged a value must not delete the one that took its place meanwhile.
_DELETE_IF = """
if redis.sha1hex(redis.call('getrange', KEYS[1], 0, ARGV[2])) ~= ARGV[1] then return 0 end
for _, key in ipairs(KEYS) do redis.call('unlink', key) end
return 1
"""


def beginning(key: bytes, length: int) -> Command:
    return "GETRANGE", key, 0, length - 1


def as_bytes(answer: object) -> bytes:
    if type(answer) is bytes:
        return answer
    raise TypeError("the server answered with something else than bytes")


def as_number(answer: object) -> int:
    if isinstance(answer, int):
        return int(answer)
    raise TypeError("the server answered with something else than a number")


def as_flag(answer: object) -> bool:
    return bool(as_number(answer))


def as_stored(answer: object) -> None:
    if not as_done(answer):
        raise TypeError("the server answered with something else than OK")


def as_done(answer: object) -> bool:
    if answer in (b"OK", "OK") or answer is True:
        return True
    if answer is None or answer is False:
        return False
    raise TypeError("the server answered with something else than OK")


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
