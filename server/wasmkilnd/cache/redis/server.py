"""What runs commands behind a Redis URL: the protocol, one server, and a missing server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from wasmkilnd.errors import TierUnavailable, forget_frames
from wasmkilnd.model import TierUsage

Command: TypeAlias = tuple[bytes | str | int, ...]
"""A command and its arguments, for example ``("SET", key, value, "EX", 60)``."""

_SCAN_COUNT = 1000


class RedisServer(Protocol):
    """A server, or several that act as one.

    Safe for concurrent use from one event loop. GuardedRedis, above it, limits the time of
    a call and decides what happens after a failure. Errors are those of the client library.
    """

    is_one_place: bool
    """Whether commands on any keys are one round trip, and fail or succeed together."""

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run ``commands``, in one round trip where that is possible, and return their replies.

        Strings are returned as bytes. This is no transaction, but commands on one key run
        in order. The key is a command's first argument (of EVAL, the third). Raises the
        first error among the replies.
        """
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return the keys that match ``pattern``, in pages.

        Includes each key that exists during the whole scan; some may come twice. A page is what
        one round trip found, even if that is nothing, so that each can be bounded in time.
        """
        ...

    async def usage(self) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report."""
        ...

    async def probe(self) -> None:
        """Ask on a new connection whether the server answers; raise if not."""
        ...

    async def close(self) -> None:
        """Close every connection; never raises."""
        ...


class SingleServer:
    """One server, or the primary that a Sentinel names, through redis-py's ``client``.

    ``client`` needs time-outs of its own for each read and write: on Python 3.11 asyncio can
    lose a cancellation that meets the end of a write.
    """

    is_one_place = True

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """As RedisServer."""
        return without_errors(await self.answers(commands))

    async def answers(self, commands: Sequence[Command]) -> list[Any]:
        """As ``run``, but return errors among the replies instead of raising them."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            # This server was the primary once. A new connection goes to the server that its
            # name or virtual address stands for now.
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return answers

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """As RedisServer."""
        cursor: int | None = None
        while cursor != 0:
            cursor, keys = await self._ask(
                "SCAN", cursor or 0, "MATCH", pattern, "COUNT", _SCAN_COUNT
            )
            yield keys

    async def usage(self) -> TierUsage:
        """As RedisServer."""
        memory, stats = (
            await self._ask_if_allowed("INFO", "memory"),
            await self._ask_if_allowed("INFO", "stats"),
        )
        return usage_of(await self._ask_if_allowed("DBSIZE"), memory, stats)

    async def probe(self) -> None:
        """As RedisServer."""
        # After a failover or a pulled cable, idle connections look alive and are dead:
        # each would cost one more time-out.
        await self._client.connection_pool.disconnect(inuse_connections=False)
        # A user without permission to PING was answered all the same.
        with contextlib.suppress(NoPermissionError):
            await self._ask("PING")

    async def close(self) -> None:
        """As RedisServer."""
        with contextlib.suppress(Exception):
            await self._client.aclose()

    async def _ask(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def _ask_if_allowed(self, *command: Any) -> Any:
        try:
            return await self._ask(*command)
        except ResponseError as error:
            if type(error) in (ResponseError, NoPermissionError):
                forget_frames(error)
                return None  # The server answers, but this user may not see it.
            raise


class UnavailableServer:
    """Stands for a server that could not be started yet: each call raises TierUnavailable."""

    is_one_place = True

    def __init__(self, why: str) -> None:
        """``why`` is the text of each error."""
        self._why = why

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """As RedisServer."""
        raise TierUnavailable(self._why)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """As RedisServer."""
        raise TierUnavailable(self._why)
        yield []

    async def usage(self) -> TierUsage:
        """As RedisServer."""
        raise TierUnavailable(self._why)

    async def probe(self) -> None:
        """As RedisServer."""
        raise TierUnavailable(self._why)

    async def close(self) -> None:
        """Do nothing."""


def without_errors(answers: list[Any]) -> list[Any]:
    """Return ``answers``; raise the first error among them."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def usage_of(entries: Any, memory: Any, stats: Any) -> TierUsage:
    """Read the replies to DBSIZE, INFO memory and INFO stats; None is no reply."""
    memory, stats = memory or {}, stats or {}
    return TierUsage(
        entries=number(entries),
        bytes=number(memory.get("used_memory")),
        limit_bytes=number(memory.get("maxmemory")),
        evictions=number(stats.get("evicted_keys")),
    )


def number(value: object) -> int:
    """Return ``value`` if it is a whole number, else 0."""
    return value if type(value) is int else 0
