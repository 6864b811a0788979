"""The few Redis commands that the tier needs, each bounded in time and behind the breaker.

This is the seam for other kinds of server: whatever offers these methods (a
cluster, a service that speaks REST) can carry the tier.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, ResponseError

from wasmkilnd.cache.breaker import Breaker
from wasmkilnd.cache.codec import Piece
from wasmkilnd.cache.explain import explain, is_outage
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import TierUsage

T = TypeVar("T")

# For a write nobody waits: it may take what 40 MB need on a slow line.
STORE_TIMEOUT_S = 10.0

_SCAN_COUNT = 1000


class RedisLink:
    """Speaks to one server through ``client``, which it owns from now on.

    Safe for concurrent use from one event loop. Every method raises
    TierUnavailable, and no other error, when the server does not do its part
    within ``timeout_s`` (for writes ``store_timeout_s``, or
    ``timeout_s`` where that is longer). Only commands that managed services allow.

    ``client`` should give up each read and write by itself after ``timeout_s``: on
    Python 3.11 asyncio can lose a cancellation that meets the end of a write.
    """

    def __init__(
        self,
        client: Redis,
        *,
        timeout_s: float = 2.0,
        store_timeout_s: float = STORE_TIMEOUT_S,
        first_wait_s: float = 0.25,
        longest_wait_s: float = 10.0,
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._store_timeout_s = max(timeout_s, store_timeout_s)
        self.breaker = Breaker(
            "redis",
            self._probe,
            is_outage,
            explain,
            first_wait_s=first_wait_s,
            longest_wait_s=longest_wait_s,
        )

    async def get(self, key: bytes) -> bytes | None:
        """Answer the whole value under ``key``."""
        return await self._run(_value, "GET", key)

    async def set(self, key: bytes, pieces: Sequence[Piece], ttl_s: int) -> None:
        """Store ``pieces`` as one value under ``key`` for ``ttl_s`` seconds."""
        await self._call(lambda: self._set(key, pieces, ttl_s), self._store_timeout_s)

    async def delete(self, keys: Sequence[bytes]) -> list[bool]:
        """Delete each of ``keys``; answer which existed."""
        return await self._each(bool, [("UNLINK", key) for key in keys])

    async def exists(self, keys: Sequence[bytes]) -> list[bool]:
        """Answer for each of ``keys`` whether it is stored."""
        return await self._each(bool, [("EXISTS", key) for key in keys])

    async def lengths(self, keys: Sequence[bytes]) -> list[int]:
        """Answer the bytes of each value; 0 where there is none."""
        return await self._each(int, [("STRLEN", key) for key in keys])

    async def beginnings(self, keys: Sequence[bytes], length: int) -> list[bytes]:
        """Answer the first ``length`` bytes of each value."""
        return await self._each(bytes, [("GETRANGE", key, 0, length - 1) for key in keys])

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Answer the keys that match, batch by batch, some perhaps twice.

        Each that is there from begin to end is among them.
        """
        cursor: int | None = None
        while cursor != 0:
            cursor, keys = await self._run(
                _page, "SCAN", cursor or 0, "MATCH", pattern, "COUNT", _SCAN_COUNT
            )
            if keys:
                yield keys

    async def usage(self) -> TierUsage:
        """Answer what the server says about itself; zeros for what it does not tell."""
        entries = await self._run(_number, "DBSIZE")
        memory = await self._info("memory")
        stats = await self._info("stats")
        return TierUsage(
            entries=entries,
            bytes=_number(memory.get("used_memory")),
            limit_bytes=_number(memory.get("maxmemory")),
            evictions=_number(stats.get("evicted_keys")),
        )

    async def close(self) -> None:
        """Close every connection; never raises."""
        await self.breaker.close()
        with contextlib.suppress(Exception):
            await self._client.aclose()

    async def _call(self, work: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                return await work()

        return await self.breaker.call(bounded)

    # Answers are converted inside the guarded call: a server that answers garbage is
    # as good as down, and the breaker must see it.

    async def _run(self, convert: Callable[[Any], T], *command: Any) -> T:
        async def run() -> T:
            return convert(await self._ask(*command))

        return await self._call(run)

    async def _ask(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def _each(
        self, convert: Callable[[Any], T], commands: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Run ``commands`` in one round trip, not as one transaction."""

        async def run() -> list[T]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return [convert(answer) for answer in await pipeline.execute()]

        return await self._call(run) if commands else []

    async def _set(self, key: bytes, pieces: Sequence[Piece], ttl_s: int) -> None:
        # Written piece by piece. Client.set would join 40 MB, and asyncio join and
        # copy them twice more: the whole daemon stood still for 70 ms, now for 1.5 ms,
        # and the write takes a third of the time (docs/performance.md).
        size = sum(len(piece) for piece in pieces)
        head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, size)
        ttl = b"%d" % ttl_s
        tail = b"\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (len(ttl), ttl)
        pool = self._client.connection_pool
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            for piece in (head, *pieces, tail):
                await connection.send_packed_command([cast(bytes, piece)], check_health=False)
            if await connection.read_response() != b"OK":
                raise TypeError("the server answered SET with something else than OK")
        except ResponseError:
            raise  # The server read the whole command and said no: the connection is in order.
        except BaseException:
            # Stopped in the middle of a command: what comes next would be read as its rest.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    async def _info(self, section: str) -> dict[str, Any]:
        try:
            return await self._run(dict, "INFO", section)
        except TierUnavailable:
            if self.breaker.open:
                raise
            return {}  # The server answers, but tells no such thing to this user.

    async def _probe(self) -> None:
        # After a failover or a pulled cable idle connections look alive and are dead.
        # Each would cost one more time-out.
        await self._client.connection_pool.disconnect(inuse_connections=False)
        # A user that may not ask so was answered all the same.
        with contextlib.suppress(NoPermissionError):
            async with asyncio.timeout(self._timeout_s):
                await self._ask("PING")


def _value(answer: object) -> bytes | None:
    if answer is None or type(answer) is bytes:
        return answer
    raise TypeError("the server answered with something else than bytes")


def _page(answer: Any) -> tuple[int, list[bytes]]:
    cursor, keys = answer
    return int(cursor), [bytes(key) for key in keys]


def _number(value: object) -> int:
    return value if type(value) is int else 0
