"""The way to Redis: commands with a time-out, behind a breaker (``wasmkilnd.waits.budgets``).

A write has more time, but ends when the server is asked again, which closes its connection: its
reply may be lost, and other writes wait behind it. One dead node of a cluster opens nothing, nor
does a cancelled call; a reply of another type than its command has is as good as no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import TierUsage
from wasmkilnd.redis import servers
from wasmkilnd.redis.servers import WRITE_TIMEOUT_S, Ask, Command, RedisServer
from wasmkilnd.waits.budgets import Breaker

T = TypeVar("T")

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
            raise servers.described(error) from None

    async def _retire(self, server: RedisServer) -> None:
        try:
            # No call takes longer, except a scan, which then fails with TierUnavailable.
            await asyncio.sleep(max(self.timeout_s, WRITE_TIMEOUT_S))
        finally:
            await server.close()

    async def _ask(self, ask: Ask, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        async def replies() -> list[Any]:
            told = servers.without_errors(await ask(commands, timeout_s))
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
        failure = servers.described(error)
        if servers.is_outage(error):
            self.failed(str(failure), late=str(failure) == servers.NO_ANSWER)
        else:
            self.answered(done=False)  # A refusal is an answer.
        return failure
