"""Connections on which a server answers no more than it was asked."""

from __future__ import annotations

from typing import Any, cast

from redis._parsers import _AsyncHiredisParser
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from wasmkilnd.cache.redis.replies import Replies


class _WatchingParser(_AsyncHiredisParser):
    """As its base, but what it is fed was looked at."""

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
    """Tells the parser what was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, parser_class=_WatchingParser)

    def pack_command(self, *command: Any) -> list[bytes]:
        # Those of a pipeline come by here as well, one by one.
        cast("_WatchingParser", self._parser).replies.expect([command])
        packed: list[bytes] = super().pack_command(*command)
        return packed


class WatchedConnection(_Watched, Connection):
    """By TCP."""


class WatchedSSLConnection(_Watched, SSLConnection):
    """By TLS."""


class WatchedSocketConnection(_Watched, UnixDomainSocketConnection):
    """By a Unix socket."""


class WatchedSentinelConnection(_Watched, SentinelManagedConnection):
    """By TCP, to whom the Sentinels name."""


class WatchedSentinelSSLConnection(_Watched, SentinelManagedSSLConnection):
    """By TLS, to whom the Sentinels name."""
