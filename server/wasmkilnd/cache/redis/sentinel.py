"""A primary that Sentinels name: each new connection asks them, so it follows a failover."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from wasmkilnd.cache.redis.concurrency import first_success
from wasmkilnd.cache.redis.replies import (
    WatchedConnection,
    WatchedSentinelConnection,
    WatchedSentinelSSLConnection,
    WatchedSSLConnection,
)
from wasmkilnd.cache.redis.server import SingleServer


class SentinelServer(SingleServer):
    """The server that is the primary of ``service`` now.

    Each new connection asks the Sentinels first, so connections to a primary that died or was
    demoted are replaced by connections to its successor. ``options`` are for connections to
    the primary, ``sentinel_options`` for those to the Sentinels.
    """

    def __init__(
        self,
        sentinels: Sequence[tuple[str, int]],
        service: str,
        options: Mapping[str, Any],
        sentinel_options: Mapping[str, Any],
        *,
        tls: bool,
    ) -> None:
        self._sentinels = _Sentinels(sentinels, sentinel_options, tls=tls)
        kind = WatchedSentinelSSLConnection if tls else WatchedSentinelConnection
        pool = _Pool(service, self._sentinels, connection_class=kind, **options)  # type: ignore[no-untyped-call]
        super().__init__(Redis.from_pool(pool))

    async def close(self) -> None:
        """As RedisServer."""
        await super().close()
        with contextlib.suppress(Exception):
            await asyncio.gather(*(each.aclose() for each in self._sentinels.sentinels))


# redis-py's own pool for Sentinels refuses callers beyond its limit instead of letting them wait.
class _Pool(SentinelConnectionPool, BlockingConnectionPool):
    pass


class _Sentinels(Sentinel):
    def __init__(
        self, sentinels: Sequence[tuple[str, int]], options: Mapping[str, Any], *, tls: bool
    ) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        kind = WatchedSSLConnection if tls else WatchedConnection
        # redis-py's own connections accept replies of any size.
        self.sentinels = [
            Redis.from_pool(ConnectionPool(connection_class=kind, host=host, port=port, **options))
            for host, port in sentinels
        ]

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return where the primary is. Raises MasterNotFoundError.

        Asks all Sentinels at once: redis-py asks one after the other, so the first one,
        if it hangs, would use up the time of every call.
        """
        try:
            return await first_success(self._ask(each, service_name) for each in self.sentinels)
        except Exception as failure:
            raise MasterNotFoundError("no Sentinel names a primary") from failure

    async def _ask(self, sentinel: Redis, service_name: str) -> tuple[str, int]:
        state: Any = await sentinel.sentinel_master(service_name)
        # A Sentinel that lost its peers still names the primary that died, but marks it down.
        if not self.check_master_state(state, service_name):
            raise RedisConnectionError("the primary that this Sentinel names is down")
        return state["ip"], state["port"]
