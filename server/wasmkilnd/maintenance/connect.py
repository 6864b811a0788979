"""Open the shared tier's server for a tool, without a tier above it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from wasmkilnd.cache.embedded import EmbeddedServer, EmbeddedUnavailable, server_folder
from wasmkilnd.cache.redis.connect import NO_ACCESS
from wasmkilnd.cache.redis.errors import NO_ANSWER
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.shared_server import CannotOpenShared, RemoteOptions, connected, where
from wasmkilnd.errors import TierUnavailable

# Longer than in a daemon: no caller waits for the reply, and batches are larger.
_TIMEOUT_S = 10.0
# The embedded server listens before it has loaded its data.
_LOADING_S = 60.0


@contextlib.asynccontextmanager
async def open_link(options: RemoteOptions, *, make: bool = False) -> AsyncIterator[GuardedRedis]:
    """Open the server that a daemon with ``options`` uses, and leave it as it was found.

    Runs the embedded server while the context lasts, unless a daemon runs it. Creates one only
    with ``make``. Raises CannotOpenShared, also if the server does not answer.
    """
    if options.url == "none":
        raise CannotOpenShared("this configuration has no shared cache: WASMKILN_REDIS_URL is none")
    async with contextlib.AsyncExitStack() as opened:
        url, access, patience_s = options.url, options.access, 0.0
        if not url:
            access = NO_ACCESS
            embedded = _embedded(options, make)
            # Before the start, since an interrupted start has to be undone too.
            opened.push_async_callback(embedded.stop)
            try:
                url = await embedded.start()
            except EmbeddedUnavailable as failure:
                raise CannotOpenShared(f"cannot use the embedded server: {failure}") from None
            patience_s = _LOADING_S
        timeout_s = max(options.timeout_s, _TIMEOUT_S)
        link = GuardedRedis(connected(options, url, access, timeout_s), timeout_s=timeout_s)
        opened.push_async_callback(link.close)
        try:
            await _answers(link, f"{options.prefix}compiled:".encode(), patience_s)
        except TierUnavailable as failure:
            raise CannotOpenShared(f"{where(options)}: {failure}") from None
        yield link


def _embedded(options: RemoteOptions, make: bool) -> EmbeddedServer:
    folder = server_folder(options.state_dir)
    # Not is_dir: it raises without permission to look.
    if not make and not os.path.isdir(folder):  # noqa: PTH112
        raise CannotOpenShared(
            f"there is no cache yet: no daemon has run with the state directory"
            f" {options.state_dir} (choose another with --state-dir, or a server with --redis-url)"
        )
    return EmbeddedServer(options.state_dir, options.embedded_limit_bytes)


async def _answers(link: GuardedRedis, name: bytes, patience_s: float) -> None:
    """Return once the server answers. Raises TierUnavailable."""
    try:
        async with asyncio.timeout(patience_s or None):
            while True:
                try:
                    await link.exists([name])
                    return
                except TierUnavailable:
                    # A server that loads its data says so; one that does not answer hangs.
                    if not patience_s or not link.breaker.open or link.breaker.detail == NO_ANSWER:
                        raise
                await link.breaker.wait_closed()
    except TimeoutError:
        raise TierUnavailable(link.breaker.detail) from None
