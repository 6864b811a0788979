"""The way to Redis: commands with a time-out, behind a circuit breaker.

While the breaker is closed, calls go through. The first outage opens it: then calls fail at once
without touching the network, and a background task, never a caller, asks the server again,
waiting longer each time, until it answers. So an outage costs the callers of that moment one
time-out at most, and later callers nothing. A write has more time, but ends before the server is
asked again: its reply may be lost, and other writes wait behind it. A refusal (full, read-only, no
permission) is an answer and opens nothing, nor does one dead node of a cluster, nor a cancelled
call; a reply of another type than its command has is as good as no answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import structlog

from wasmkilnd.cache.redis_servers import WRITE_TIMEOUT_S as WRITE_TIMEOUT_S
from wasmkilnd.cache.redis_servers import Command as Command
from wasmkilnd.cache.redis_servers import (
    RedisServer,
    described,
    is_outage,
    is_timeout,
    without_errors,
)
from wasmkilnd.errors import TierUnavailable, forget_frames
from wasmkilnd.model import TierUsage

T = TypeVar("T")

_log = structlog.get_logger("wasmkilnd.cache")

_FIRST_WAIT_S = 0.25

_NONE = type(None)
_NUMBERS = (
    "APPEND DEL EXISTS EXPIRE PERSIST PEXPIRE PTTL RENAMENX SADD SCARD SETRANGE SREM STRLEN TTL"
    " UNLINK"
)
# What the replies to a command are. Those to a script, and to any other command, may be anything.
_TYPES: dict[bytes | str | int, tuple[type, ...]] = {
    **dict.fromkeys(_NUMBERS.split(), (int,)),
    "GET": (bytes, _NONE),
    "GETRANGE": (bytes,),
    "SET": (bytes, _NONE),
    "SMEMBERS": (list,),
}


class RedisLink:
    """Runs commands on ``server``, and closes it at the end.

    Safe for concurrent use from one event loop. Every method raises TierUnavailable, and no
    other error, if the server fails or does not answer within ``timeout_s``: WrongType for a key
    of another type, PartUnavailable for one dead node of a cluster.
    """

    def __init__(
        self,
        server: RedisServer,
        *,
        timeout_s: float = 2.0,
        retry_max_s: float = 10.0,
    ) -> None:
        """``retry_max_s`` is the longest wait before the server is asked again."""
        self.timeout_s = timeout_s
        self._server = server
        self._retiring: set[asyncio.Task[None]] = set()
        self._retry_max_s = retry_max_s
        self._closed = asyncio.Event()
        self._closed.set()
        self._closed_at_s = -retry_max_s
        self._wait_s = self._first_wait_s
        self._asking: asyncio.Task[None] | None = None
        self._long: set[asyncio.Timeout] = set()
        """The calls under way that may take longer than ``timeout_s``."""
        self._answered = False
        self._answered_at_s = -timeout_s
        self._why = "not asked yet"

    @property
    def is_down(self) -> bool:
        """Whether calls fail at once now."""
        return not self._closed.is_set()

    @property
    def up(self) -> bool:
        """Whether the server answered the last time it was asked."""
        return self._answered and not self.is_down

    @property
    def why_down(self) -> str:
        """What is wrong, without secrets; empty while the server is up."""
        return "" if self.up else self._why

    async def run(self, *commands: Command, timeout_s: float | None = None) -> list[Any]:
        """Run ``commands``, in one round trip where the server allows it; return their replies.

        Strings are bytes, whole numbers int, OK is ``b"OK"``, nothing is None. The first error
        among the replies is raised. ``timeout_s`` bounds all steps together, instead of the
        link's own time-out: a write passes WRITE_TIMEOUT_S.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s

        async def ask() -> list[Any]:
            replies = without_errors(await self._server.ask(commands, timeout_s))
            for command, reply in zip(commands, replies, strict=True):
                known = isinstance(reply, _TYPES.get(command[0], object))
                if not known or (command[0] == "SET" and reply not in (b"OK", None)):
                    raise TypeError("the server returned a reply of another type")
            return replies

        return await self._call(ask, timeout_s) if commands else []

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Return the keys that match ``pattern``, in pages; a page may be empty.

        Includes each key that exists during the whole scan; some may come twice. Each page has
        its own time-out.
        """
        pages = self._server.scan(pattern, self.timeout_s)

        async def next_page() -> list[bytes] | None:
            return await anext(pages, None)

        while (page := await self._call(next_page, self.timeout_s)) is not None:
            yield page

    async def usage(self) -> TierUsage:
        """Return what the server reports about itself; zero for what it does not report."""
        return await self._call(lambda: self._server.usage(self.timeout_s), self.timeout_s)

    async def ready(self) -> None:
        """Return when calls go through."""
        await self._closed.wait()

    def replace(self, server: RedisServer) -> None:
        """Use ``server`` from now on; commands that are running end on the previous one."""
        retiring = asyncio.create_task(self._retire(self._server))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        self._server = server

    async def close(self) -> None:
        """Close every connection; never raises."""
        tasks = [*self._retiring, *([self._asking] if self._asking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close()

    async def _retire(self, server: RedisServer) -> None:
        try:
            # No call takes longer, except a scan, which then fails with TierUnavailable.
            await asyncio.sleep(max(self.timeout_s, WRITE_TIMEOUT_S))
        finally:
            await server.close()

    @property
    def _first_wait_s(self) -> float:
        return min(_FIRST_WAIT_S, self._retry_max_s)

    async def _call(self, work: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        if self.is_down:
            raise TierUnavailable(self._why)
        try:
            async with asyncio.timeout(timeout_s) as end:
                if timeout_s > self.timeout_s:
                    self._long.add(end)
                try:
                    answer = await work()
                finally:
                    self._long.discard(end)
        except Exception as error:
            failure = described(error)
            outage = is_outage(error)
            if outage and is_timeout(error) and self._answers_others():
                outage = False  # This daemon is slow, or this one reply.
            elif not outage:
                self._answered = True  # A refusal is an answer.
            forget_frames(error)  # Frames hold values, and libraries keep their errors.
            if outage:
                self._open(str(failure))
            try:
                # Not `from error`: a traceback in a log would contain its secrets.
                raise failure from None
            finally:
                del failure  # Its traceback holds this frame.
        self._answered = True
        self._answered_at_s = time.monotonic()
        return answer

    def _answers_others(self) -> bool:
        return time.monotonic() - self._answered_at_s < self.timeout_s / 2

    def _open(self, why: str) -> None:
        if self.is_down:
            return  # A call that began before; the first one has logged it.
        if time.monotonic() - self._closed_at_s > self._retry_max_s:
            self._wait_s = self._first_wait_s
        # Else it flaps: it answers when it is asked, and nothing more. Keep the waits growing.
        self._why = why
        self._closed.clear()
        _log.warning("tier is down", tier="redis", detail=why)
        soon_s = asyncio.get_running_loop().time() + self._first_wait_s
        for end in self._long:
            if not end.expired():
                end.reschedule(min(end.when() or soon_s, soon_s))
        self._asking = asyncio.create_task(self._ask_until_it_answers())

    async def _ask_until_it_answers(self) -> None:
        opened_at_s = time.monotonic()
        while True:
            await asyncio.sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, self._retry_max_s)
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self._server.probe(self.timeout_s)
            except Exception as error:
                self._why = str(described(error))
                forget_frames(error)
                continue
            break
        self._closed_at_s = time.monotonic()
        self._answered = True
        self._closed.set()
        down_s = round(self._closed_at_s - opened_at_s, 1)
        _log.info("tier is up again", tier="redis", down_s=down_s)
