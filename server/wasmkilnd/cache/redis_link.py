"""The way to Redis: commands with a time-out, behind a circuit breaker.

While the breaker is closed, calls go through. The first outage opens it: then calls fail at once
without touching the network, and a background task, never a caller, asks the server again,
waiting longer each time, until it answers. So an outage costs the callers of that moment one
time-out at most, and later callers nothing. A write has more time, but ends when the server is
asked again, which closes its connection: its reply may be lost, and other writes wait behind it. A
refusal (full, read-only, no permission) is an answer and opens nothing, nor does one dead node of
a cluster, nor a cancelled call; a reply of another type than its command has is as good as no
answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

import structlog

from wasmkilnd.cache import redis_servers
from wasmkilnd.cache.redis_servers import WRITE_TIMEOUT_S, Ask, Command, RedisServer
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import TierUsage

T = TypeVar("T")

_log = structlog.get_logger("wasmkilnd.cache")

_FIRST_WAIT_S = 0.25

_NUMBERS = "APPEND EXISTS EXPIRE PERSIST RENAMENX SADD STRLEN TTL UNLINK"
# What the replies to a command are. Those to a script, and to any other command, may be anything.
_TYPES: dict[Any, type] = dict.fromkeys(_NUMBERS.split(), int) | {"GETRANGE": bytes}
# Of one scan of one server: of a hundred million keys.
_MOST_PAGES = 100_000


def _fits(command: Command, reply: Any) -> bool:
    """Return whether ``command`` can have this reply."""
    if command[0] == "SET":
        return reply in (b"OK", None)
    if command[0] in ("SCAN", "SRANDMEMBER"):
        cursor, names = reply if command[0] == "SCAN" else (0, reply)
        return int(cursor) >= 0 and all(type(name) is bytes for name in names)
    return isinstance(reply, _TYPES.get(command[0], object))


class RedisLink:
    """Runs commands on ``server``, and closes it at the end.

    Safe for concurrent use from one event loop. Every method raises TierUnavailable, and no
    other error, if the server fails or does not answer within ``timeout_s``: WrongType for a key
    of another type, PartUnavailable for one dead node of a cluster.
    """

    def __init__(
        self, server: RedisServer, *, timeout_s: float = 2.0, retry_max_s: float = 2.0
    ) -> None:
        """``retry_max_s`` is the longest wait before the server is asked again."""
        self.timeout_s = timeout_s
        # What is wrong, without secrets; empty while the server is up.
        self.why_down = "not asked yet"
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry_max_s = retry_max_s
        self._closed = asyncio.Event()
        self._closed.set()
        self._closed_at_s = -retry_max_s
        self._first_wait_s = self._wait_s = min(_FIRST_WAIT_S, retry_max_s)
        self._answered_at_s = -timeout_s

    @property
    def is_down(self) -> bool:
        """Whether calls fail at once now."""
        return not self._closed.is_set()

    @property
    def up(self) -> bool:
        """Whether the server answered the last time it was asked."""
        return not self.why_down

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
        its own time-out, and there are no more than any honest server has.
        """
        for ask in await self._call(self._server.parts, self.timeout_s):
            cursor, pages = cast("Any", None), 0
            while cursor is None or int(cursor):
                if (pages := pages + 1) > _MOST_PAGES:
                    raise TierUnavailable("Redis does not end a scan")
                command: Command = ("SCAN", cursor or 0, "MATCH", pattern, "COUNT", 1000)
                [(cursor, page)] = await self._ask(ask, [command], self.timeout_s)
                yield page

    async def usage(self) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report."""
        return await self._call(lambda: self._server.usage(self.timeout_s), self.timeout_s)

    async def ready(self) -> None:
        """Return when calls go through."""
        await self._closed.wait()

    def replace(self, server: RedisServer) -> None:
        """Use ``server`` from now on; commands that are running end on the previous one."""
        self._begin(self._retire(self._server))
        self._server = server

    async def close(self) -> None:
        """Close every connection; never raises."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, server: RedisServer) -> None:
        try:
            # No call takes longer, except a scan, which then fails with TierUnavailable.
            await asyncio.sleep(max(self.timeout_s, WRITE_TIMEOUT_S))
        finally:
            await server.close()

    async def _ask(self, ask: Ask, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        async def replies() -> list[Any]:
            told = redis_servers.without_errors(await ask(commands, timeout_s))
            if len(told) != len(commands) or not all(map(_fits, commands, told)):
                raise TypeError("the server returned a reply of another type")
            return told

        return await self._call(replies, timeout_s)

    async def _call(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        if self.is_down:
            raise TierUnavailable(self.why_down)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await work()
        except Exception as error:
            # Not `from error`: a traceback in a log would contain its secrets.
            raise self._failed(error) from None
        self._note_answer()
        self._answered_at_s = time.monotonic()
        return answer

    def _failed(self, error: Exception) -> TierUnavailable:
        failure = redis_servers.described(error)
        if not redis_servers.is_outage(error):
            self._note_answer()  # A refusal is one.
        # A time-out while others are answered: this daemon is slow, or this one reply.
        elif str(failure) != redis_servers.NO_ANSWER or (
            time.monotonic() - self._answered_at_s >= self.timeout_s / 2
        ):
            self._open(str(failure))
        return failure

    def _note_answer(self) -> None:
        if not self.is_down:  # Else the call began before.
            self.why_down = ""

    def _open(self, why: str) -> None:
        if self.is_down:
            return  # A call that began before; the first one has logged it.
        if time.monotonic() - self._closed_at_s > self._retry_max_s:
            self._wait_s = self._first_wait_s
        # Else it flaps: it answers when it is asked, and nothing more. Keep the waits growing.
        self.why_down = why
        self._closed.clear()
        _log.warning("tier is down", tier="redis", detail=why)
        self._begin(self._ask_until_it_answers())

    async def _ask_until_it_answers(self) -> None:
        while True:
            await asyncio.sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, self._retry_max_s)
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self._server.probe(self.timeout_s)
                break
            except Exception as error:
                self.why_down = str(redis_servers.described(error))
        self._closed_at_s = time.monotonic()
        self._closed.set()
        self.why_down = ""
        _log.info("tier is up again", tier="redis")
