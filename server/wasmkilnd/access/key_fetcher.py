"""Fetch the JSON Web Key Set of an issuer from its URL, beside the calls."""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp
import structlog

from wasmkilnd.access.key_set import KeySet, parse_key_set
from wasmkilnd.access.unusable import defect_in

log = structlog.get_logger("wasmkilnd")

_EVERY_S = 300.0
_LEAST_BETWEEN_S = 30.0
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_MOST_BYTES = 1024 * 1024


class CannotFetch(Exception):  # noqa: N818 - says what happened
    """The keys cannot be fetched now; the message says why."""


class KeyFetcher:
    """Holds the keys of one URL, and fetches them again. For one event loop.

    While the URL cannot be read, the keys that were read last stay in force.
    """

    def __init__(self, url: str, keys: KeySet) -> None:
        """Begin with ``keys``. Without a ``url``, fetch nothing."""
        self._wanted = asyncio.Event()
        self._failure = ""
        self.use(url, keys)

    def use(self, url: str, keys: KeySet) -> None:
        """Hold ``keys`` from now on, which were fetched from ``url`` just now."""
        self.url, self.current = url, keys
        self._fetched_s = time.monotonic()

    def want(self) -> None:
        """Have the keys fetched again soon: a token names one that is not there.

        Whoever makes up names of keys causes one fetch in half a minute.
        """
        self._wanted.set()

    async def run(self) -> None:
        """Fetch the keys now and then, until cancelled."""
        while True:
            has_none = self.url and not self.current.keys
            pause_s = _LEAST_BETWEEN_S if has_none else _EVERY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._fetched_s + pause_s - time.monotonic())):
                    await self._wanted.wait()
            # A reload may have fetched them meanwhile.
            await asyncio.sleep(self._fetched_s + _LEAST_BETWEEN_S - time.monotonic())
            self._wanted.clear()
            self._fetched_s = time.monotonic()
            if self.url:
                await self._fetch(self.url)

    async def _fetch(self, url: str) -> None:
        try:
            keys = await fetch_keys(url)
        except CannotFetch as failure:
            if str(failure) != self._failure:
                self._failure = str(failure)
                log.error("cannot fetch jwt_keys: the old ones stay", cause=self._failure)
            return
        self._failure = ""
        if url == self.url:
            self.current = keys


async def fetch_keys(url: str) -> KeySet:
    """Return the keys that a URL has now. Raises CannotFetch after 10 seconds at the latest."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            # A redirection could lead to a place without TLS, or inside this network.
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise ValueError(f"the server answered {answer.status}")
            content = b""
            async for part in answer.content.iter_chunked(64 * 1024):
                content += part
                if len(content) > _MOST_BYTES:
                    raise ValueError("it is larger than 1 MiB")
        return parse_key_set(content)
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as failure:
        why = str(failure) or "it took more than 10 seconds"
    except Exception as defect:  # the next fetch must not depend on it
        why = defect_in(defect)
    raise CannotFetch(f"cannot fetch jwt_keys {url.partition('?')[0]}: {why}")
