"""The server of the shared tier: an external Redis, the embedded Valkey, or none.

All namespaces use this one connection, each below its own names. A server that does not answer yet
is no failure: the link asks it again until it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wasmkilnd.cache.embedded import EmbeddedServer, EmbeddedUnavailable
from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import Command, RedisAccess, RedisServer, connect
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.redis_address import RedisAddress


class SharedServer:
    """The server at ``url``, which is empty for the embedded one, or ``none``."""

    def __init__(
        self,
        url: str,
        access: RedisAccess,
        *,
        state_dir: Path,
        embedded_limit_bytes: int,
        timeout_s: float,
        retry_max_s: float,
    ) -> None:
        """Make ready to connect; see ``start``. Raises AccessUnusable."""
        self._url = url
        self._timeout_s = timeout_s
        self._embedded = None if url else EmbeddedServer(state_dir, embedded_limit_bytes)
        self.mode = "none" if url == "none" else "external" if url else "embedded"
        """As in RemoteStatus."""
        self.link: RedisLink | None = None
        """None if the shared tier is switched off."""
        if url != "none":
            server = (
                _Embedded(self._embedded, timeout_s)
                if self._embedded
                else connect(url, access, timeout_s=timeout_s)
            )
            self.link = RedisLink(server, timeout_s=timeout_s, retry_max_s=retry_max_s)

    async def start(self) -> None:
        """Start the embedded server, and wait until it listens, or cannot start yet."""
        if self._embedded:
            with contextlib.suppress(EmbeddedUnavailable):
                await self._embedded.start()

    @property
    def description(self) -> str:
        """Where the server is, in words without secrets, and whether it answers."""
        if self.link is None:
            return "no Redis tier (WASMKILN_REDIS_URL=none)"
        place = f"Redis at {RedisAddress.parse(self._url)}" if self._url else "embedded Valkey"
        return place if self.link.up else f"{place}, which does not answer yet"

    def prepare_reconnect(self, access: RedisAccess) -> Callable[[], None]:
        """Read ``access`` and the files that it names; return what starts using them.

        A connection keeps the certificates that were read when it was made. So every connection
        is made again, even if only the content of a file changed. Raises AccessUnusable.
        """
        if self.link is None or self._embedded:
            return lambda: None
        server, link = connect(self._url, access, timeout_s=self._timeout_s), self.link
        return lambda: link.replace(server)

    async def close(self) -> None:
        """Close the connections, after all tiers that use them; see leave."""
        if self.link:
            await self.link.close()

    async def leave(self) -> None:
        """Stop using the embedded server; wait for its end if this daemon keeps it.

        If the wait is cancelled, the server ends by itself.
        """
        if self._embedded:
            await self._embedded.stop()


class _Embedded(RedisServer):
    """The embedded server, which may start at any time."""

    def __init__(self, embedded: EmbeddedServer, timeout_s: float) -> None:
        self._embedded = embedded
        self._timeout_s = timeout_s
        self._server: RedisServer | None = None

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        """As RedisServer."""
        if why := self._embedded.why_not:
            raise TierUnavailable(f"the embedded server does not start: {why}")
        if self._server is None:
            self._server = connect(self._embedded.url(), timeout_s=self._timeout_s)
        return await self._server.ask(commands, timeout_s)

    async def close(self) -> None:
        """As RedisServer."""
        if self._server:
            await self._server.close()
