"""Limit what a server may send to what was asked for, on connections of redis-py.

redis-py buffers whatever a server announces, and makes objects of it, however much that is. So
these connections look at all that arrives before redis-py does: they compare the announced
lengths and counts with the largest replies that the commands under way can have. They do not
look at the bytes of values. See https://valkey.io/topics/protocol/ (RESP2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

from redis._parsers import _AsyncHiredisParser
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

_KIB, _MIB = 2**10, 2**20

Argument: TypeAlias = "bytes | str | int | float | memoryview"

_MAX_LINE_BYTES = 4 * _KIB
# CLUSTER SLOTS nests four deep.
_MAX_DEPTH = 6
_LEAST_REPLY_BYTES = _MAX_LINE_BYTES + 64

# Bytes and array elements of replies that are more than a number, a line or a GETRANGE.
_LARGER = {
    "GET": (6 * _MIB, 0),
    "SCAN": (4 * _MIB, 100_000),
    "CLUSTER": (2 * _MIB, 100_000),
    "INFO": (256 * _KIB, 0),
    "SENTINEL": (64 * _KIB, 1000),
    "HELLO": (64 * _KIB, 1000),
}


def most_of(command: Sequence[Argument]) -> tuple[int, int]:
    """Return the most bytes, and the most array elements, that a reply to ``command`` has."""
    name = _text(command[0]).partition(" ")[0].upper()
    if name == "GETRANGE":
        first, last = int(_text(command[2])), int(_text(command[3]))
        return _LEAST_REPLY_BYTES + max(0, last - first + 1), 0
    size_bytes, elements = _LARGER.get(name, (0, 0))
    return _LEAST_REPLY_BYTES + size_bytes, elements


class Replies:
    """Checks what arrives on one connection; ``look`` raises InvalidResponse for too much."""

    def __init__(self) -> None:
        self._commands = 0
        """Commands without a reply so far."""
        self._bytes = 0
        self._elements = 0
        self._body = 0
        """Bytes that are missing of a value that has begun."""
        self._line = b""
        """The beginning of a line whose end is missing."""
        self._open: list[int] = []
        """Missing elements of each array that has begun, the outermost first."""

    def expect(self, commands: Iterable[Sequence[Argument]]) -> None:
        """Allow the replies to ``commands``, which are about to be sent."""
        if not self._commands:
            self._bytes = self._elements = 0  # Do not add what earlier replies left unused.
        for command in commands:
            size_bytes, elements = most_of(command)
            self._commands += 1
            self._bytes += size_bytes
            self._elements += elements

    def look(self, arrived: bytes) -> None:
        """Check what arrived. Raises InvalidResponse for more than was asked for."""
        self._bytes -= len(arrived)
        if self._bytes < 0:
            raise InvalidResponse("the server sends more than it was asked for")
        if self._line:
            arrived, self._line = self._line + arrived, b""
        at = 0
        while at < len(arrived):
            if self._body:
                at, self._body = at + self._body, max(0, self._body - (len(arrived) - at))
                if not self._body:
                    self._one_done()
                continue
            end = arrived.find(b"\r\n", at)
            if max(end, len(arrived) if end < 0 else 0) - at > _MAX_LINE_BYTES:
                raise InvalidResponse("the server sends a line that does not end")
            if end < 0:
                self._line = arrived[at:]
                return
            self._begin(arrived[at:end], len(arrived) - end - 2)
            at = end + 2

    def _begin(self, line: bytes, here: int) -> None:
        """Begin what ``line`` announces; at most ``here`` bytes of it have arrived."""
        match line[:1]:
            case b"+" | b"-" | b":":
                self._one_done()
            case b"$":
                length = _number(line)
                if length > self._bytes + here:
                    raise InvalidResponse("the server announces more than it was asked for")
                if length < 0:
                    self._one_done()
                else:
                    self._body = length + 2
            case b"*":
                count = _number(line)
                self._elements -= max(0, count)
                if self._elements < 0 or len(self._open) >= _MAX_DEPTH:
                    raise InvalidResponse("the server announces an array that was not asked for")
                if count <= 0:
                    self._one_done()
                else:
                    self._open.append(count)
            case _:
                raise InvalidResponse("the server does not speak version 2 of the protocol")

    def _one_done(self) -> None:
        """Note the end of a value, and of the arrays whose last element it is."""
        while self._open:
            self._open[-1] -= 1
            if self._open[-1]:
                return
            self._open.pop()
        self._commands -= 1
        if self._commands < 0:
            raise InvalidResponse("the server sends a reply without a command")


def _number(line: bytes) -> int:
    digits = line[1:]
    if not digits.removeprefix(b"-").isdigit() or len(digits) > 20:
        raise InvalidResponse("the server announces a length that is not a number")
    return max(-1, int(digits))


def _text(argument: Argument) -> str:
    return bytes(argument).decode() if isinstance(argument, bytes | memoryview) else str(argument)


class _WatchingParser(_AsyncHiredisParser):
    """A parser that gets only what ``Replies`` has checked."""

    __slots__ = ("replies",)

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self.replies = Replies()

    def on_connect(self, connection: Any) -> None:
        self.replies = Replies()
        super().on_connect(connection)  # type: ignore[no-untyped-call]

    async def read_from_socket(self) -> bool:
        arrived = await self._stream.read(self._read_size) if self._stream else b""
        if not arrived:
            raise RedisConnectionError("Connection closed by server.")
        self.replies.look(arrived)
        self._reader.feed(arrived)  # type: ignore[attr-defined]
        return True


class _Watched(AbstractConnection):
    """A connection that tells its parser which commands it sends, and that always closes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, parser_class=_WatchingParser)

    def pack_command(self, *command: Any) -> list[bytes]:
        # The commands of a pipeline pass here too, one by one.
        cast("_WatchingParser", self._parser).replies.expect([command])
        packed: list[bytes] = super().pack_command(*command)
        return packed

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close the connection, even where the server hangs or the caller is cancelled.

        With TLS, redis-py waits until the server says goodbye, and then leaves the socket open.
        """
        writer = self._writer
        try:
            await super().disconnect(*args, **options)
        finally:
            if writer is not None:
                writer.transport.abort()


class WatchedConnection(_Watched, Connection):
    """Over TCP."""


class WatchedSSLConnection(_Watched, SSLConnection):
    """Over TLS."""


class WatchedSocketConnection(_Watched, UnixDomainSocketConnection):
    """Over a Unix socket."""


class WatchedSentinelConnection(_Watched, SentinelManagedConnection):
    """Over TCP, to the primary that the Sentinels name."""


class WatchedSentinelSSLConnection(_Watched, SentinelManagedSSLConnection):
    """Over TLS, to the primary that the Sentinels name."""
