"""What stands behind a Redis URL: something that runs commands."""

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

    Safe for concurrent use from one event loop. How long a call may take as a whole,
    and what happens after one that failed, is decided above it, in GuardedRedis. What
    goes wrong is raised as the client library raises it.
    """

    is_one_place: bool
    """Whether commands on any keys are one round trip, and fail or succeed together."""

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Run ``commands`` in one round trip where that is possible; answer their answers.

        Strings are answered as bytes. It is no transaction, but commands on one key are
        executed in order. The key is a command's first argument (of EVAL, the third).
        Raises the first error among the answers.
        """
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return the keys that match, batch by batch, some perhaps twice.

        Each that is there from begin to end is among them. A batch is what one round trip
        found, and empty where that was nothing: so each can be bounded in time.
        """
        ...

    async def usage(self) -> TierUsage:
        """Return what the server says about itself; zeros for what it does not tell."""
        ...

    async def probe(self) -> None:
        """Ask on a new connection whether anyone answers; raise if not."""
        ...

    async def close(self) -> None:
        """Close every connection; never raises."""
        ...


class SingleServer:
    """One server, or the primary that a Sentinel names, through redis-py's ``client``.

    ``client`` should give up each read and write by itself in time: on Python 3.11
    asyncio can lose a cancellation that meets the end of a write.
    """

    is_one_place = True

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """As RedisServer."""
        return without_errors(await self.answers(commands))

    async def answers(self, commands: Sequence[Command]) -> list[Any]:
        """As ``run``, but an error that the server answers is an answer, and raises nothing."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            # It was the primary once. What its name or virtual address stands for now
            # shows when somebody connects anew.
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
        memory, stats = await self._told("INFO", "memory"), await self._told("INFO", "stats")
        return usage_of(await self._told("DBSIZE"), memory, stats)

    async def probe(self) -> None:
        """As RedisServer."""
        # After a failover or a pulled cable idle connections look alive and are dead.
        # Each would cost one more time-out.
        await self._client.connection_pool.disconnect(inuse_connections=False)
        # A user that may not ask so was answered all the same.
        with contextlib.suppress(NoPermissionError):
            await self._ask("PING")

    async def close(self) -> None:
        """As RedisServer."""
        with contextlib.suppress(Exception):
            await self._client.aclose()

    async def _ask(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def _told(self, *command: Any) -> Any:
        try:
            return await self._ask(*command)
        except ResponseError as error:
            if type(error) in (ResponseError, NoPermissionError):
                forget_frames(error)
                return None  # The server answers, but tells no such thing to this user.
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
    """Return ``answers``. Raises the first error among them."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def usage_of(entries: Any, memory: Any, stats: Any) -> TierUsage:
    """Read the answers to DBSIZE and to INFO memory and stats; None is nothing told."""
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
