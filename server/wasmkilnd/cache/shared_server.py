"""Connects to the server of the shared tier: an external Redis, the embedded Valkey, or none.

All namespaces use this one connection, each below its own names: see ``open_shared``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from wasmkilnd.cache.embedded import EmbeddedServer, EmbeddedUnavailable
from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.cache.redis_servers import (
    NO_ACCESS,
    AccessUnusable,
    RedisAccess,
    RedisServer,
    UnavailableServer,
    connect,
)
from wasmkilnd.model import SWITCHED_OFF
from wasmkilnd.redis_address import BadRedisUrl, RedisAddress

log = structlog.get_logger("wasmkilnd.cache")

_REVIVE_INTERVAL_S = 1.0
_MAX_REVIVE_INTERVAL_S = 60.0


class CannotOpenShared(Exception):  # noqa: N818 - says what cannot be done
    """The shared tier cannot be used as it is configured; the message says why."""


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """The settings of the shared tier. ``url`` is empty for the embedded server, or ``none``."""

    url: str = field(repr=False)
    access: RedisAccess
    state_dir: Path
    embedded_limit_bytes: int
    prefix: str
    ttl_s: int
    ttl_refresh: bool
    timeout_s: float
    retry_max_s: float
    write_queue_bytes: Callable[[], int]
    lease_s: float
    """0 to compile without asking other daemons."""
    fleet_wait_s: Callable[[], float]
    artifact_bytes: Callable[[], int]
    """The largest artifact that the daemon takes from the tier."""
    module_bytes: Callable[[], int]


@dataclass(kw_only=True, eq=False, repr=False)
class SharedServer:
    """The server of the shared tier, and what comes and goes with it."""

    place: str
    """Where it is, in words without secrets."""
    mode: str
    """As in RemoteStatus: ``embedded``, ``external`` or ``none``."""
    link: RedisLink | None = None
    """None if the shared tier is switched off."""
    embedded: EmbeddedServer | None = None
    reconnect: Callable[[RedisAccess], RedisServer] | None = None
    """Connects to an external server, with other means of access."""
    open_late: Callable[[str], RedisServer] | None = None
    """Connects to the embedded server by its URL, if it could not start yet."""

    def __post_init__(self) -> None:
        self._reviver = asyncio.create_task(self._revive()) if self.embedded else None

    @property
    def up(self) -> bool:
        """Whether the server answers."""
        return self.link.up if self.link else False

    @property
    def why_down(self) -> str:
        """Why the server does not answer; empty if it does."""
        return self.link.why_down if self.link else SWITCHED_OFF

    @property
    def description(self) -> str:
        """Where the server is, and whether it answers."""
        return (
            self.place if self.up or not self.link else f"{self.place}, which does not answer yet"
        )

    def prepare_reconnect(self, access: RedisAccess) -> Callable[[], None]:
        """Read ``access`` and the files that it names; return what starts using them.

        A connection keeps the certificates that were read when it was made. So every connection
        is made again, even if only the content of a file changed. Raises CannotOpenShared.
        """
        if self.link is None or self.reconnect is None:
            return lambda: None
        server, link = self.reconnect(access), self.link
        return lambda: link.replace(server)

    async def close(self) -> None:
        """Close the connections, after all tiers that use them; see leave."""
        if self._reviver:
            self._reviver.cancel()
            await asyncio.gather(self._reviver, return_exceptions=True)
        if self.link:
            await self.link.close()

    async def leave(self) -> None:
        """Stop using the embedded server; wait for its end if no other daemon uses it.

        If the wait is cancelled, the server ends by itself.
        """
        if self.embedded:
            await self.embedded.stop()

    async def _revive(self) -> None:
        """Restart the embedded server when it is gone; start it if it did not start at first."""
        wait_s, logged = _REVIVE_INTERVAL_S, ""
        while True:
            await asyncio.sleep(wait_s)
            if not (self.link and self.link.is_down and self.embedded):
                wait_s, logged = _REVIVE_INTERVAL_S, ""
                continue
            try:
                if self.open_late:
                    self.link.replace(self.open_late(await self.embedded.start()))
                    self.open_late = None
                else:
                    await self.embedded.ensure()
            except EmbeddedUnavailable as failure:
                wait_s = min(2 * wait_s, _MAX_REVIVE_INTERVAL_S)
                if str(failure) != logged:  # Log each cause once.
                    logged = str(failure)
                    log.warning("cannot restart the embedded server", cause=logged)


async def open_server(options: RemoteOptions) -> SharedServer:
    """Connect to the server. One that does not answer yet is no failure.

    Raises CannotOpenShared for a URL that cannot be used.
    """
    if options.url == "none":
        return SharedServer(place="no Redis tier (WASMKILN_REDIS_URL=none)", mode="none")
    if options.url:
        return _external(options)
    return await _embedded(options)


def _external(options: RemoteOptions) -> SharedServer:
    def reconnect(access: RedisAccess) -> RedisServer:
        return connected(options, options.url, access, options.timeout_s)

    return SharedServer(
        place=where(options),
        mode="external",
        link=_guarded(options, reconnect(options.access)),
        reconnect=reconnect,
    )


async def _embedded(options: RemoteOptions) -> SharedServer:
    def opened(url: str) -> RedisServer:
        return connected(options, url, NO_ACCESS, options.timeout_s)

    embedded = EmbeddedServer(options.state_dir, options.embedded_limit_bytes)
    open_late: Callable[[str], RedisServer] | None = None
    try:
        server = opened(await embedded.start())
    except EmbeddedUnavailable as failure:
        log.error("the embedded server does not start", cause=str(failure))
        server = UnavailableServer(f"the embedded server does not start: {failure}")
        open_late = opened
    return SharedServer(
        place=where(options),
        mode="embedded",
        link=_guarded(options, server),
        embedded=embedded,
        open_late=open_late,
    )


def _guarded(options: RemoteOptions, server: RedisServer) -> RedisLink:
    return RedisLink(server, timeout_s=options.timeout_s, retry_max_s=options.retry_max_s)


def connected(
    options: RemoteOptions, url: str, access: RedisAccess, timeout_s: float
) -> RedisServer:
    """Return the server at ``url``. It connects when it is first used.

    ``timeout_s`` bounds each read and each write. Raises CannotOpenShared.
    """
    try:
        return connect(url, access, timeout_s=timeout_s)
    except (BadRedisUrl, AccessUnusable) as failure:
        raise CannotOpenShared(str(failure)) from None


def where(options: RemoteOptions) -> str:
    """Return which server ``options`` name, in words without secrets."""
    return f"Redis at {RedisAddress.parse(options.url)}" if options.url else "embedded Valkey"
